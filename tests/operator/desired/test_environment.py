"""Tests of the environment of workers and routers, which follows from the resource alone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good, of

from disagg_operator.api import parse
from disagg_operator.desired.environment import adapter_environment, router_environment, worker_environment
from disagg_operator.desired.facts import Images
from disagg_operator.desired.local_process import worker_process
from disagg_operator.desired.pod_templates import worker_template
from disagg_operator.desired.renderer import FIRST, WORKER_TRANSPORT
from disagg_operator.performance.declared import profile_of


def worker(role: str, **spec: Any) -> dict[str, str]:
    return worker_environment(parse(good(**spec)), role)


@pytest.mark.parametrize(
    ("spec", "variable", "value"),
    [
        ({}, "DISAGG_MODEL_URI", "file:///models/m"),
        ({"model": {"uri": "hf://org/m"}}, "DISAGG_MODEL_URI", "hf://org/m"),
        ({"model": {"uri": "hf://org/m", "revision": "v2"}}, "DISAGG_MODEL_URI", "hf://org/m@v2"),
        ({"model": {"name": "big"}}, "DISAGG_MODEL_NAME", "big"),
        ({}, "DISAGG_MODEL_NAME", "m"),
        ({"engine": {"dtype": "bfloat16"}}, "DISAGG_DTYPE", "bfloat16"),
        ({"engine": {"quantization": "int8"}}, "DISAGG_QUANTIZATION", "int8"),
        ({"engine": {"prefixCaching": {"enabled": False}}}, "DISAGG_PREFIX_CACHE", "false"),
        ({}, "DISAGG_PREFIX_CACHE", "true"),
        ({"engine": {"prefixCaching": {"eviction": "fifo"}}}, "DISAGG_EVICTION", "fifo"),
        ({"engine": {"blockSizeTokens": 32}}, "DISAGG_BLOCK_SIZE_TOKENS", "32"),
        ({"engine": {"threads": 8}}, "DISAGG_THREADS", "8"),
        ({"decode": {"maxRunningRequests": 7}}, "DISAGG_MAX_RUNNING", "7"),
        ({"decode": {"maxBatchTokens": 512}}, "DISAGG_MAX_BATCH_TOKENS", "512"),
        ({"decode": {"drain": {"timeoutSeconds": 9}}}, "DISAGG_DRAIN_TIMEOUT_S", "9"),
    ],
)
def test_a_worker_is_told_what_the_spec_says(spec: dict[str, Any], variable: str, value: str) -> None:
    assert worker("decode", **spec)[variable] == value


@pytest.mark.parametrize(
    ("spec", "variable", "value"),
    [
        ({"decode": {"parallelism": {"tensor": 2}}}, "DISAGG_TENSOR_PARALLEL", "2"),
        ({"engine": {"maxModelLen": 4096}}, "DISAGG_MAX_MODEL_LEN", "4096"),
        ({"decode": {"kvCacheSize": "1Gi"}}, "DISAGG_KV_CACHE_BYTES", str(1 << 30)),
        ({"engine": {"prefixCaching": {"hostMemory": "2Mi"}}}, "DISAGG_HOST_CACHE_BYTES", str(2 << 20)),
        ({"kvTransfer": {"integrity": "crc32c"}}, "DISAGG_TRANSFER_INTEGRITY", "crc32c"),
        ({"engine": {"numerics": "Exact"}}, "DISAGG_NUMERICS", "exact"),
        ({"engine": {"numerics": "Fast"}}, "DISAGG_NUMERICS", "fast"),
    ],
)
def test_an_optional_field_is_a_variable_only_where_it_is_set(spec: dict[str, Any], variable: str, value: str) -> None:
    assert worker("decode", **spec)[variable] == value
    assert variable not in worker("decode")


def test_an_adapter_is_told_what_the_spec_says_of_its_engine() -> None:
    spec: dict[str, Any] = {
        "model": {"uri": "hf://org/m", "revision": "v2"},
        "engine": {"type": "vllm"},
        "decode": {"parallelism": {"tensor": 2}},
    }
    found = adapter_environment(parse(good(**spec)), "decode", "decode")
    assert found["DISAGG_MODEL_URI"] == "hf://org/m@v2"
    assert (found["DISAGG_ROLE"], found["DISAGG_ENGINE"], found["DISAGG_TENSOR_RATIO"]) == ("decode", "vllm", "1:2")
    assert (found["DISAGG_LEASE_S"], found["DISAGG_TRANSPORT"]) == ("60", "auto")
    assert not {"DISAGG_LORA_ADAPTERS", "DISAGG_EXPERIMENTAL"} & set(found)


def test_an_adapter_is_told_of_lora_adapters_and_of_the_experiment() -> None:
    spec: dict[str, Any] = {"model": {"adapters": [{"name": "law", "uri": "file:///law"}]}, "engine": {"type": "vllm"}}
    assert adapter_environment(parse(good(**spec)), "prefill", "prefill")["DISAGG_LORA_ADAPTERS"] == '["law"]'
    network = {"attachmentRef": {"name": "n"}, "rdmaResource": {"name": "rdma/hca"}}
    rdma: dict[str, Any] = {"kvTransfer": {"transport": "rdma", "network": network}}
    dd = parse(of("lmdeploy", engine={"experimental": True}, **rdma))
    assert adapter_environment(dd, "prefill", "prefill")["DISAGG_EXPERIMENTAL"] == "true"


@pytest.mark.parametrize("transport", ["rdma", "tcp", "auto"])
def test_a_worker_knows_the_transport_unless_it_was_rendered_before_there_was_a_choice(transport: str) -> None:
    network = {"attachmentRef": {"name": "n"}, "rdmaResource": {"name": "rdma/hca"}}
    dd = parse(good(kvTransfer={"transport": transport, "network": network}))
    for renderer, known in ((FIRST, False), (WORKER_TRANSPORT, transport != "auto")):
        template, _ = worker_template(dd, "decode", Images(renderer=renderer))
        found = {e["name"]: e.get("value") for e in template["spec"]["containers"][0]["env"]}
        assert found.get("DISAGG_TRANSPORT") == (transport if known else None)
    assert worker_process(dd, "decode", 0, 1, "key").environment.get("DISAGG_TRANSPORT") == (
        None if transport == "auto" else transport
    )


FLIPPING: dict[str, Any] = {
    "scaling": {"roleFlip": True}, **{role: {"autoscaling": {"maxReplicas": 2}} for role in ("prefill", "decode")},
}  # fmt: skip
OBJECTIVE: dict[str, Any] = {"objectives": {"tpotSeconds": {"p99": 0.05}}}


@pytest.mark.parametrize(
    ("role", "spec", "target"),
    [
        ("prefill", OBJECTIVE, "0.05"),
        ("decode", OBJECTIVE, None),
        ("decode", OBJECTIVE | FLIPPING, "0.05"),
        ("prefill", {}, None),
        ("prefill", FLIPPING, None),
    ],
)
def test_who_prefills_is_told_the_objective_of_decode_where_one_is_set(
    role: str, spec: dict[str, Any], target: str | None
) -> None:
    assert worker(role, **spec).get("DISAGG_DECODE_STEP_TARGET_S") == target


def test_the_router_is_told_of_its_queue_the_objectives_and_what_a_prompt_takes_alone() -> None:
    dd = parse(
        good(
            router={"queue": {"maxDepth": 5, "maxWaitSeconds": 7, "order": "FirstComeFirstServed"}},
            objectives={"ttftSeconds": {"p99": 0.5}, "tpotSeconds": {"p99": 0.05}},
        )
    )
    profile = profile_of(dd)
    assert router_environment(dd) == {
        "DISAGG_MODEL_NAME": "m",
        "DISAGG_QUEUE_MAX_DEPTH": "5",
        "DISAGG_QUEUE_MAX_WAIT_S": "7",
        "DISAGG_QUEUE_ORDER": "FirstComeFirstServed",
        "DISAGG_OBJECTIVE_TTFT_S": "0.5",
        "DISAGG_OBJECTIVE_TPOT_S": "0.05",
        "DISAGG_PREFILL_A_S": f"{profile.a_s:.4g}",
        "DISAGG_PREFILL_B_S_PER_TOKEN": f"{profile.b_s_per_token:.4g}",
        "DISAGG_PREFILL_C_S_PER_TOKEN2": f"{profile.c_s_per_token2:.4g}",
    }


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [([], {"DISAGG_HOLD_MAX_WAIT_S": "90"}),
     ([{"name": "sql", "uri": "hf://a/sql"}], {"DISAGG_HOLD_MAX_WAIT_S": "90", "DISAGG_LORA_ADAPTERS": '["sql"]'})],
)  # fmt: skip
def test_a_router_that_may_be_without_workers_knows_what_only_they_would_tell(
    adapters: list[Any], expected: dict[str, str]
) -> None:
    spec: dict[str, Any] = {"model": {"uri": "hf://a/b", "adapters": adapters}, "engine": {"type": "vllm"}}
    with_it = router_environment(parse(good(**spec, scaling={"scaleToZero": {"holdSeconds": 90}})))
    without = router_environment(parse(good(**spec)))
    assert with_it == without | expected


def test_the_limit_of_what_decode_prefills_reaches_the_routers_only_if_it_is_set() -> None:
    with_it, none, without = (
        router_environment(parse(good(router=r)))
        for r in ({"localPrefillMaxTokens": 32}, {"localPrefillMaxTokens": 0}, {})
    )
    assert with_it.items() - without.items() == {("DISAGG_LOCAL_PREFILL_MAX_TOKENS", "32")}
    assert none.items() - without.items() == {("DISAGG_LOCAL_PREFILL_MAX_TOKENS", "0")}
    assert "DISAGG_LOCAL_PREFILL_MAX_TOKENS" not in without


def test_the_limits_of_liveness_reach_the_routers_only_if_they_are_set() -> None:
    with_them, without = (
        router_environment(parse(good(router=r))) for r in ({"liveness": {"silenceSeconds": 2.5}}, {})
    )
    more = {("DISAGG_SILENCE_S", "2.5"), ("DISAGG_STEP_ALLOWANCE", "3")}
    assert with_them.items() - without.items() == more


def test_routers_learn_of_the_service_beside_the_deployment() -> None:
    upstream = {"url": "http://vllm.prod:8000", "percent": 95}
    with_it, without = (router_environment(parse(good(router=r))) for r in ({"upstream": upstream}, {}))
    assert with_it == without | {
        "DISAGG_UPSTREAM_URL": "http://vllm.prod:8000", "DISAGG_UPSTREAM_PERCENT": "95",
    }  # fmt: skip


def test_routers_learn_where_traces_go_only_if_that_is_set() -> None:
    tracing = {"endpoint": "http://c.obs:4318", "samplingRatio": 0.5, "trustParent": True}
    with_it, without = (router_environment(parse(good(observability=o))) for o in ({"tracing": tracing}, {}))
    assert with_it == without | {
        "DISAGG_TRACING_ENDPOINT": "http://c.obs:4318", "DISAGG_TRACING_SAMPLING_RATIO": "0.5",
        "DISAGG_TRACING_TRUST_PARENT": "true",
    }  # fmt: skip
    plain = router_environment(parse(good(observability={"tracing": {"endpoint": "http://c.obs:4318"}})))
    assert "DISAGG_TRACING_TRUST_PARENT" not in plain
