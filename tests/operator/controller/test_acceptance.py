"""A resource is refused for reasons that neither the schema nor a rule of the API covers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import good

from disagg_operator.api import base, parse
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.controller import acceptance

_GPU = {"accelerator": {"count": 1}}


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"decode": {"kvCacheSize": "0"}}, "InvalidSpec", "spec.decode.kvCacheSize: must be above 0"),
        ({"prefill": {"kvCacheSize": "0.1"}}, "InvalidSpec", "spec.prefill.kvCacheSize: must be above 0"),
        ({"scaling": {"maxGPUs": 8}}, "InvalidSpec", "spec.scaling.maxGPUs: both pools must have an accelerator"),
        (
            {"scaling": {"maxGPUs": 8}, "prefill": _GPU, "decode": {"accelerator": {"count": 0}}},
            "InvalidSpec",
            "spec.scaling.maxGPUs: both pools must have an accelerator",
        ),
        (
            {"prefill": {"parallelism": {"tensor": 5}}},
            "UnsupportedParallelism",
            "spec.prefill.parallelism.tensor: 5 ranks, but without GPUs at most 4 are supported",
        ),
        (
            {"decode": {**_GPU, "parallelism": {"tensor": 2}}},
            "UnsupportedParallelism",
            "spec.decode.parallelism.tensor: 2 ranks, but accelerator.count is 1",
        ),
        ({"prefill": {"replicas": -1}}, "InvalidSpec", "spec.prefill.replicas: "),
    ],
)
def test_what_can_not_be_carried_out_is_refused_by_name(spec: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(acceptance.Refused) as caught:
        acceptance.accept(good(**spec))
    assert (caught.value.reason, str(caught.value)[: len(message)]) == (reason, message)


@pytest.mark.parametrize(
    "spec",
    [
        {"prefill": {"parallelism": {"tensor": 4}}},
        {"scaling": {"maxGPUs": 8}, "prefill": _GPU, "decode": _GPU},
        {"prefill": {"kvCacheSize": "1"}, "decode": {"kvCacheSize": 1}},
    ],
)
def test_what_can_just_be_carried_out_is(spec: dict[str, Any]) -> None:
    assert acceptance.accept(good(**spec)).resource == parse(good(**spec))


@given(st.from_regex(base._BYTES, fullmatch=True) | st.integers(1, 1 << 50))
def test_every_size_that_the_schema_lets_pass_is_a_quantity_of_bytes(size: str | int) -> None:
    assert quantity_bytes(size) >= 0


@given(st.from_regex(base._NUMBER, fullmatch=True) | st.integers(1, 999_999))
def test_every_target_that_the_schema_lets_pass_is_a_number_above_0(target: str | int) -> None:
    autoscaling = {"maxReplicas": 2, "metrics": [{"target": {"averageValue": target}}]}
    found = parse(good(prefill={"autoscaling": autoscaling})).spec.prefill.autoscaling
    assert found is not None
    assert 0.0 < found.queue_target(4.0) < 1e6
