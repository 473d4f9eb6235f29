"""Tests of the conditions that say what a resource gives up, by its spec alone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good, of

from disagg_operator.api import parse
from disagg_operator.status.declared_conditions import declared_conditions

GPU = {"accelerator": {"count": 1}}
RDMA = {"transport": "rdma", "network": {"attachmentRef": {"name": "fast"}, "rdmaResource": {"name": "rdma/hca"}}}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({}, None),
        ({"engine": {"numerics": "Exact"}}, None),
        ({"prefill": {"accelerator": {"count": 0}}}, None),
        ({"engine": {"numerics": "Fast"}}, "FastNumerics"),
        ({"engine": {"numerics": "Fast"}, "prefill": GPU, "decode": GPU}, "FastNumerics"),
        ({"prefill": GPU, "decode": GPU}, "ComputesOnGPUs"),
    ],
)
def test_what_fast_numerics_give_up_is_told(spec: dict[str, Any], reason: str | None) -> None:
    found = declared_conditions(parse(good(**spec)).spec)
    assert [(c.type, c.status, c.reason) for c in found] == (
        [] if reason is None else [("ExactNumerics", "False", reason)]
    )
    assert all("nearly tied" in c.message for c in found)


def test_an_engine_that_rounds_by_itself_is_not_spoken_of() -> None:
    assert declared_conditions(parse(of("vllm", prefill=GPU, decode=GPU)).spec) == ()


def test_an_experiment_is_told_with_what_to_watch() -> None:
    (found,) = declared_conditions(parse(of("lmdeploy", engine={"experimental": True}, kvTransfer=RDMA)).spec)
    assert (found.type, found.status, found.reason) == ("Experimental", "True", "UnpinnedKV")
    assert "disagg_engine_other_first_tokens_total" in found.message
