"""Tests of the transfer times of networks and of the vendors of accelerators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.performance.hardware import GPUS, NETWORKS


@pytest.mark.parametrize(("name", "vendor"), [("H100", "NVIDIA"), ("A10G", "NVIDIA"), ("MI300X", "AMD")])
def test_an_accelerator_has_the_vendor_of_its_product(name: str, vendor: str) -> None:
    assert GPUS[name].vendor == vendor


def test_five_gigabytes_over_100_gigabits_take_nearly_half_a_second_and_not_milliseconds() -> None:
    assert NETWORKS["rdma-100"].transfer_s(5e9) == pytest.approx(0.447, abs=0.001)


@given(st.sampled_from(sorted(NETWORKS)), st.floats(0, 1e12), st.floats(0, 1e12))
def test_more_bytes_take_longer_and_none_take_the_latency(name: str, a: float, b: float) -> None:
    network = NETWORKS[name]
    assert network.transfer_s(0) == network.base_latency_s
    assert network.transfer_s(a + b) - network.base_latency_s == pytest.approx(
        network.transfer_s(a) + network.transfer_s(b) - 2 * network.base_latency_s
    )
