"""The backend over the CUDA kernels. Activations have the model's dtype; sums are float32."""

from __future__ import annotations

import torch

from disagg_worker.backend.cuda import decode_attention, elementwise, prefill_attention, store
from disagg_worker.backend.cuda.graphs import DecodeGraphs
from disagg_worker.backend.cuda.linear import DenseLinear, FewBitsLinear
from disagg_worker.backend.cuda.static_batch import BATCH_SIZES
from disagg_worker.backend.cuda.weight_only import unit_of
from disagg_worker.backend.interface import (
    Batch,
    DecodeProgram,
    DecoderNetwork,
    DenseWeight,
    Fp8Weight,
    HeadNorms,
    Linear,
    QkvShape,
    Rotary,
    Weight,
)
from disagg_worker.backend.plain import PlainBackend

# For tests in which Triton's interpreter takes the place of a GPU.
_PROCESSORS_WITHOUT_GPU = 8


class CudaBackend:
    """Implements interface.Backend on one NVIDIA GPU."""

    name = "cuda"
    exact = False
    decode_sizes = BATCH_SIZES

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._plain = PlainBackend(device)
        self._prepared: tuple[Batch, prefill_attention.Prepared] | None = None
        on_gpu = device.type == "cuda"
        self._processors = (
            torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else _PROCESSORS_WITHOUT_GPU
        )
        # Tensor cores and conversions for float8_e4m3 exist since Ada.
        self.fp8_cache = self._has_fp8 = not on_gpu or torch.cuda.get_device_capability(device) >= (8, 9)
        if on_gpu:
            torch.cuda.set_device(device)

    def compute_dtype(self, model: torch.dtype) -> torch.dtype:
        return model

    def linear(self, weight: Weight, bias: torch.Tensor | None) -> Linear:
        if isinstance(weight, DenseWeight):
            return DenseLinear(weight.weight, bias, self.device)
        unit = unit_of(weight) if self._has_fp8 or not isinstance(weight, Fp8Weight) else None
        return self._plain.linear(weight, bias) if unit is None else FewBitsLinear(weight, unit, bias, self.device)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return elementwise.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return elementwise.rms_norm(x, weight, eps, delta)

    def store_qkv(
        self,
        qkv: torch.Tensor,
        shape: QkvShape,
        norms: HeadNorms | None,
        rotary: Rotary,
        batch: Batch,
        cache: torch.Tensor,
        layer: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = store.store_qkv(qkv, shape, norms, rotary, batch.positions, batch.slots, cache, layer)
        none = q.new_empty(0)  # `attend` reads the cache.
        return q, none, none

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: Batch,
        cache: torch.Tensor,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        if batch.tables is not None and batch.lengths is not None:
            splits = decode_attention.splits_for(q.shape[0], cache.shape[3], self._processors)
            return decode_attention.attend(q, cache, layer, batch.tables, batch.lengths, window, splits)
        if self._prepared is None or self._prepared[0] is not batch:
            self._prepared = batch, prefill_attention.Prepared(batch.chunks, self.device)
        return prefill_attention.attend(q, cache, layer, self._prepared[1], window)

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        return elementwise.gated(gate_up)

    def decode_program(self, network: DecoderNetwork, cache: torch.Tensor) -> DecodeProgram | None:
        return DecodeGraphs(network, cache) if self.device.type == "cuda" else None
