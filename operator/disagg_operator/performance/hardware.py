"""PURE: The accelerators and networks, with the figures that their makers state.

FLOP/s are dense, without sparsity.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """An accelerator."""

    name: str
    product: str
    """The value of the node label that the feature discovery of the device sets."""
    memory_bytes: float
    bandwidth_bytes_per_s: float
    """The bandwidth of the memory."""
    bf16_flops: float
    """The dense FLOP/s in bf16."""
    fp8_flops: float | None
    """The dense FLOP/s in FP8; None if the accelerator does not support it."""
    link_bytes_per_s: float | None
    """The bandwidth between two GPUs of a node in one direction; None: over PCIe."""
    max_tensor: int
    """The maximum number of GPUs of a node that share a replica."""
    source: str
    """The address at which the maker states the figures."""

    @property
    def vendor(self) -> str:
        """The vendor. KV can only be moved between accelerators of the same vendor."""
        return self.product.split("-")[0].split("_")[0]


@dataclass(frozen=True, slots=True)
class Network:
    """A network over which the KV cache can be moved."""

    name: str
    line_bits_per_s: float
    base_latency_s: float
    """The time of a transfer in seconds apart from moving its bytes."""
    efficiency: float
    """The share of the line rate that a transfer of many blocks reaches (an assumption)."""

    @property
    def bytes_per_s(self) -> float:
        """The bytes per second that a network interface carries in practice."""
        return self.line_bits_per_s * self.efficiency / 8

    def transfer_s(self, size_bytes: float) -> float:
        """Return the time in seconds of a transfer that has the link to itself."""
        return self.base_latency_s + size_bytes / self.bytes_per_s


_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
GPUS = {
    g.name: g
    for g in (
        Gpu(
            "A10G",
            "NVIDIA-A10G",
            24e9,
            600e9,
            70e12,
            None,
            None,
            4,
            "https://aws.amazon.com/ec2/instance-types/g5/ and NVIDIA A10G datasheet",
        ),
        Gpu("L40S", "NVIDIA-L40S", 48e9, 864e9, 362e12, 733e12, None, 4, _NVIDIA + "l40s/"),
        Gpu("A100", "NVIDIA-A100-SXM4-80GB", 80e9, 2039e9, 312e12, None, 300e9, 8, _NVIDIA + "a100/"),
        Gpu("H100", "NVIDIA-H100-80GB-HBM3", 80e9, 3350e9, 989e12, 1979e12, 450e9, 8, _NVIDIA + "h100/"),
        Gpu("H200", "NVIDIA-H200", 141e9, 4800e9, 989e12, 1979e12, 450e9, 8, _NVIDIA + "h200/"),
        Gpu("B200", "NVIDIA-B200", 180e9, 8000e9, 2250e12, 4500e12, 900e9, 8, _NVIDIA + "dgx-b200/"),
        Gpu(
            "MI300X",
            "AMD_Instinct_MI300X_OAM",
            192e9,
            5300e9,
            1307e12,
            2615e12,
            448e9,
            8,
            "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
        ),
    )
}
NETWORKS = {
    n.name: n
    for n in (
        Network("nvlink", 3.6e12, 0.5e-3, 0.7),
        Network("rdma-400", 400e9, 3e-3, 0.9),
        Network("rdma-200", 200e9, 3e-3, 0.9),
        Network("rdma-100", 100e9, 3e-3, 0.9),
        Network("ethernet-100", 100e9, 20e-3, 0.6),
        Network("ethernet-25", 25e9, 20e-3, 0.8),
    )
}
