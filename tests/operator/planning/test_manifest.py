"""Tests of the resource of a plan, which our models and a real API server accept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from tests.operator.planning.questions import question, traffic

from disagg_operator.api import parse_file
from disagg_operator.performance.model_shape import KNOWN, PlanError
from disagg_operator.planning.deployment_plan import make_plan
from disagg_operator.planning.manifest import Wishes, check, deployment

WISHES = Wishes("chat", "hf://meta-llama/Llama-3.1-70B-Instruct")
CASES: dict[str, tuple[dict[str, Any], Wishes]] = {
    "fixed": ({}, WISHES),
    "scaled": ({}, replace(WISHES, scaled=True)),
    "rdma": ({}, replace(WISHES, rdma_resource="rdma/hca_shared_devices_a", network="kv", engine="vllm")),
    "vllm": ({}, replace(WISHES, engine="vllm", kv_bits=8, rounded_bits=8)),
    "sglang": ({}, replace(WISHES, engine="sglang")),
    "ethernet": ({"network": "ethernet-100", "ttft_s": 5.0, "tpot_s": 0.1}, replace(WISHES, network="kv")),
    "AMD": ({"gpus": "MI300X"}, WISHES),
    "small": (
        {"model": "llama-3.1-8b", "gpus": "L40S", "traffic": traffic(1.0)},
        replace(WISHES, uri="pvc://models/llama"),
    ),
    "fp8": ({}, replace(WISHES, rounded_bits=8)),
    "int8": ({"gpus": "A100"}, replace(WISHES, rounded_bits=8)),
    "int4": ({}, replace(WISHES, rounded_bits=4)),
    "two kinds": (
        {"gpus": "H100,A100", "prefill_gpus": frozenset({"H100"}), "decode_gpus": frozenset({"A100"})},
        WISHES,
    ),
}


def made(case: str) -> dict[str, Any]:
    asked, wishes = CASES[case]
    return deployment(make_plan(question(**asked)), wishes)


@pytest.mark.parametrize("case", CASES)
def test_it_is_a_resource_of_ours_with_the_planned_pools(case: str) -> None:
    asked, wishes = CASES[case]
    plan = make_plan(question(**asked))
    spec = parse_file(deployment(plan, wishes)).spec
    for pool in plan.disaggregated.pools:  # type: ignore[union-attr]
        found = spec.pool(pool.role)
        assert found.accelerator is not None
        assert (found.accelerator.count, found.parallelism.tensor) == (pool.tensor, pool.tensor)
        count = found.autoscaling.max_replicas if wishes.scaled and found.autoscaling else found.replicas
        assert count == pool.replicas
    assert spec.decode.max_running_requests == plan.disaggregated.pools[1].batch  # type: ignore[union-attr]


def test_details() -> None:
    assert made("fixed")["spec"]["objectives"] == {"ttftSeconds": {"p99": 2.0}, "tpotSeconds": {"p99": 0.05}}
    assert "engine" not in made("fixed")["spec"]
    for kind in ("fp8", "int8", "int4"):
        assert made(kind)["spec"]["engine"] == {"quantization": kind}
    assert made("vllm")["spec"]["engine"] == {
        "type": "vllm", "quantization": "fp8", "args": ["--kv-cache-dtype", "fp8"],
    }  # fmt: skip
    assert "kvCacheSize" in made("vllm")["spec"]["prefill"]
    assert "kvCacheSize" not in made("sglang")["spec"]["prefill"]
    assert made("AMD")["spec"]["decode"]["accelerator"]["resourceName"] == "amd.com/gpu"
    assert made("rdma")["spec"]["kvTransfer"]["transport"] == "rdma"
    assert made("ethernet")["spec"]["kvTransfer"] == {"transport": "tcp", "network": {"attachmentRef": {"name": "kv"}}}
    assert made("two kinds")["spec"]["decode"]["accelerator"]["product"] == "NVIDIA-A100-SXM4-80GB"


@pytest.mark.parametrize(
    ("asked", "wishes", "words"),
    [
        ({"ttft_s": 0.01}, WISHES, "nothing to apply: ttft"),
        ({}, replace(WISHES, uri="s3://bucket"), "spec.model.uri"),
        ({}, replace(WISHES, name="Chat"), "metadata.name"),
        ({}, replace(WISHES, rdma_resource="rdma/x", engine="vllm"), "--network-attachment"),
        ({"gpus": "A100"}, replace(WISHES, engine="vllm", rounded_bits=8), "takes only none or fp8"),
    ],
)
def test_what_can_not_be_applied_is_said(asked: dict[str, Any], wishes: Wishes, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        deployment(make_plan(question(**asked)), wishes)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (replace(WISHES, uri="s3://bucket"), "spec.model.uri"),
        (replace(WISHES, name="Chat"), "metadata.name"),
        (replace(WISHES, network="A_b"), "attachmentRef.name"),
        (replace(WISHES, rdma_resource="rdma/x", engine="vllm"), "--network-attachment"),
        (replace(WISHES, kv_bits=8), "--kv-bits 8"),
        (replace(WISHES, rounded_bits=4, engine="sglang"), "takes only none or fp8"),
        (replace(WISHES, engine="lmdeploy"), "--engine lmdeploy: .* is an experiment"),
    ],
)
def test_what_no_plan_could_be_applied_with_is_said_before_one_is_made(wishes: Wishes, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check(wishes, KNOWN["llama-3.1-70b"])


def test_good_wishes_pass() -> None:
    for _, wishes in CASES.values():
        check(wishes, KNOWN["llama-3.1-70b"])


@pytest.mark.parametrize(
    ("model", "words"),
    [("mixtral-8x7b", "has no mixtures of experts: the plan"), ("deepseek-v3", "mixtures of experts and no latent")],
)
def test_no_resource_is_written_for_a_model_that_the_bundled_engine_would_refuse(model: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check(WISHES, KNOWN[model])
    with pytest.raises(PlanError, match=words):
        deployment(make_plan(question(model, "H200")), WISHES)


def test_other_engines_serve_such_models() -> None:
    check(replace(WISHES, engine="vllm"), KNOWN["deepseek-v3"])


def test_a_batch_is_one_that_the_engine_takes() -> None:
    plan = make_plan(question())
    prefill, decode = plan.disaggregated.pools  # type: ignore[union-attr]
    pools = (replace(prefill, batch=2050), replace(decode, batch=4000))
    odd = replace(plan, disaggregated=replace(plan.disaggregated, pools=pools))  # type: ignore[arg-type]
    assert deployment(odd, WISHES)["spec"]["prefill"]["maxBatchTokens"] == 2050
    assert deployment(odd, replace(WISHES, engine="sglang"))["spec"]["prefill"]["maxBatchTokens"] == 2064
    spec = deployment(odd, replace(WISHES, engine="vllm"))["spec"]
    assert (spec["decode"]["maxRunningRequests"], spec["decode"]["maxBatchTokens"]) == (4000, 4000)


@pytest.mark.apiserver
@pytest.mark.parametrize("case", CASES)
def test_the_api_server_takes_it(crd_client: httpx.Client, case: str) -> None:
    path = "/apis/disagg.dev/v1alpha1/namespaces/default/disaggdeployments"
    answer = crd_client.post(path, params={"fieldValidation": "Strict", "dryRun": "All"}, json=made(case))
    assert answer.status_code == 201, answer.text
