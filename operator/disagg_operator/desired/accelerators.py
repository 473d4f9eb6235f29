"""PURE: The labels, taints and UCX transports of accelerators, by the maker of the resource."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Maker:
    """A maker of accelerators, and the words of its device plugin and its feature discovery."""

    name: str
    group: str
    """What stands before the slash in its extended resources."""
    product_label: str
    """The node label that holds the product."""
    taint: str
    """The taint of nodes with its devices, if it is not always the resource; else empty."""
    copies: tuple[str, str]
    """The transports of UCX within a node and between its memory and that of the host."""


NVIDIA = Maker("NVIDIA", "nvidia.com", "nvidia.com/gpu.product", "nvidia.com/gpu", ("cuda_ipc", "cuda_copy"))
AMD = Maker("AMD", "amd.com", "amd.com/gpu.product-name", "amd.com/gpu", ("rocm_ipc", "rocm_copy"))
INTEL = Maker("Intel", "gpu.intel.com", "gpu.intel.com/product", "", ("ze_ipc", "ze_copy"))
_BY_GROUP = {maker.group: maker for maker in (NVIDIA, AMD, INTEL)}


def maker_of(resource: str) -> Maker | None:
    """Return the maker of the devices of an extended resource, or None if it is not known."""
    return _BY_GROUP.get(resource.partition("/")[0])


def taints_of(resource: str) -> tuple[str, ...]:
    """Return the keys of the taints that nodes with a device usually have.

    That of the resource itself comes first; nodes with parts of a device, such as those of MIG, are
    tainted as nodes with whole ones.
    """
    maker = maker_of(resource)
    further = () if maker is None or not maker.taint else (maker.taint,)
    return tuple(dict.fromkeys((resource, *further)))
