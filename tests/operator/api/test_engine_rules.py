"""Tests of the rules that are made from the limits of the engines."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good, of

from disagg_operator.api import InvalidResource, parse
from disagg_operator.api.engine_rules import argument_problems, engine_rules
from disagg_operator.controller.acceptance import scale_plan
from disagg_operator.engines import BY_NAME

ADAPTERS = [{"name": "law", "uri": "file:///law"}]


def test_every_message_names_its_engine_and_the_field_to_blame() -> None:
    for rule in engine_rules():
        assert any(rule.message.startswith(f"engine.type {name} ") for name in BY_NAME)
        assert rule.field


@pytest.mark.parametrize(
    ("engine", "spec"),
    [
        ("vllm", {"engine": {"quantization": "fp8"}, "model": {"adapters": ADAPTERS}}),
        ("vllm", {"prefill": {"parallelism": {"tensor": 8}}, "decode": {"parallelism": {"tensor": 2}}}),
        ("vllm", {"prefill": {"parallelism": {"tensor": 2}}, "decode": {"parallelism": {"tensor": 8}}}),
        ("vllm", {"scaling": {"roleFlip": False}, "engine": {"experimental": False, "leaseSeconds": 30}}),
        ("sglang", {"model": {"adapters": ADAPTERS}, "engine": {"dtype": "float32", "leaseSeconds": 30}}),
        ("lmdeploy", {"prefill": {"parallelism": {"tensor": 8}}}),
        ("builtin", {"engine": {"quantization": "int4", "prefixCaching": {"hostMemory": "1Gi"}}}),
    ],
)
def test_what_an_engine_can_do_is_accepted(engine: str, spec: dict[str, Any]) -> None:
    assert parse(of(engine, **spec)).spec.engine.known is BY_NAME[engine]


def test_the_experiment_of_lmdeploy_needs_rdma_and_equal_sizes() -> None:
    network = {"attachmentRef": {"name": "n"}, "rdmaResource": {"name": "rdma/hca"}}
    rdma = {"transport": "rdma", "network": network}
    spec = {"engine": {"experimental": True}, "kvTransfer": rdma}
    assert parse(of("lmdeploy", **spec)).spec.engine.experimental
    with pytest.raises(InvalidResource, match=r"spec.engine.experimental: .* by rdma alone"):
        parse(of("lmdeploy", engine={"experimental": True}, kvTransfer={"transport": "tcp"}))
    with pytest.raises(InvalidResource, match=r"spec.decode.parallelism.tensor"):
        parse(of("lmdeploy", **spec, decode={"parallelism": {"tensor": 2}}))


def test_vllm_runs_without_a_gpu_and_the_others_do_not() -> None:
    parse(good(engine={"type": "vllm"}))
    with pytest.raises(InvalidResource, match=r"spec.prefill.accelerator"):
        parse(good(engine={"type": "sglang"}))


def test_an_argument_is_named_by_its_list_and_its_place() -> None:
    lists = {"engine.args": ["--seed", "1"], "decode.args": ["--seed", "1", "--port=2"]}
    assert list(argument_problems(BY_NAME["vllm"], lists)) == [
        ("decode.args[2]", "--port: --port is set by the operator")
    ]


def test_an_engine_whose_experiment_can_be_chosen_says_what_it_risks() -> None:
    told = {name for name, engine in BY_NAME.items() if engine.experiment is not None}
    assert told == {name for name, engine in BY_NAME.items() if "engine.experimental" not in engine.limits.off}


@pytest.mark.parametrize("engine", [name for name, engine in BY_NAME.items() if engine.process is not None])
def test_a_worker_behind_an_adapter_never_flips_its_role(engine: str) -> None:
    spec = {role: {"autoscaling": {"minReplicas": 1, "maxReplicas": 2}} for role in ("prefill", "decode")}
    with pytest.raises(InvalidResource, match=rf"spec.scaling.roleFlip: engine.type {engine} "):
        parse(of(engine, **spec, scaling={"roleFlip": True}))
    planned = scale_plan(of(engine, **spec))
    assert planned is not None
    assert planned.settings.role_flip_s is None
