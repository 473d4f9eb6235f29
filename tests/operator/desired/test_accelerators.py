"""Tests of the labels and taints of accelerators."""

from __future__ import annotations

import pytest

from disagg_operator.desired.accelerators import AMD, INTEL, NVIDIA, maker_of, taints_of


@pytest.mark.parametrize(
    ("resource", "maker", "taints"),
    [
        ("nvidia.com/gpu", NVIDIA, ("nvidia.com/gpu",)),
        ("nvidia.com/mig-1g.10gb", NVIDIA, ("nvidia.com/mig-1g.10gb", "nvidia.com/gpu")),
        ("amd.com/gpu", AMD, ("amd.com/gpu",)),
        ("gpu.intel.com/xe", INTEL, ("gpu.intel.com/xe",)),
        ("habana.ai/gaudi", None, ("habana.ai/gaudi",)),
    ],
)
def test_the_resource_tells_the_maker(resource: str, maker: object, taints: tuple[str, ...]) -> None:
    assert maker_of(resource) is maker
    assert taints_of(resource) == taints


def test_each_maker_has_its_own_label() -> None:
    labels = [maker.product_label for maker in (NVIDIA, AMD, INTEL)]
    assert labels == ["nvidia.com/gpu.product", "amd.com/gpu.product-name", "gpu.intel.com/product"]
