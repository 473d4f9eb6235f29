"""Linear modules on the GPU.

Floating-point weights are multiplied by cuBLAS. Weights of 8 or 4 bits are multiplied by the kernel
of weight_only if there are few rows; for many rows they are widened and multiplied by cuBLAS.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from disagg_worker.backend.cuda.weight_only import WeightOnly
from disagg_worker.backend.interface import Fp8Weight, GroupQuantizedWeight

# From this number of rows on, a product is bound by arithmetic, and widening the weight first costs
# less than a slower kernel.
_MANY_ROWS = 128


class DenseLinear:
    """Implements interface.Linear for a floating-point weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device) -> None:
        self._weight = weight.to(device)
        self._bias = None if bias is None else bias.to(device)
        self.out_features, self.in_features = weight.shape
        self.weight_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)


class FewBitsLinear:
    """Implements interface.Linear for a weight of 8 or 4 bits."""

    def __init__(
        self, weight: GroupQuantizedWeight | Fp8Weight, unit: int, bias: torch.Tensor | None, device: torch.device
    ) -> None:
        self._weight = WeightOnly(weight, unit, device)
        self._bias = None if bias is None else bias.to(device)
        self.out_features, self.in_features = self._weight.outputs, self._weight.inputs
        self.weight_bytes = self._weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] < _MANY_ROWS:
            return self._weight.product(x, self._bias)
        return functional.linear(x, self._weight.dense(x.dtype), self._bias)
