"""The RMS norm (with and without the sum of the residual) and the gate of the MLP.

Each is one pass over memory. A program computes one row of a norm, or a part of a row of the gate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["eps"])
def _rms_norm(x, delta, weight, out, eps, n: tl.constexpr, width: tl.constexpr, add: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, width)
    inside = at < n
    values = tl.load(x + row * n + at, mask=inside, other=0.0)
    if add:
        moved = values.to(tl.float32) + tl.load(delta + row * n + at, mask=inside, other=0.0).to(tl.float32)
        values = moved.to(x.dtype.element_ty)
        tl.store(x + row * n + at, values, mask=inside)
    wide = values.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / n + eps)
    scaled = normed.to(x.dtype.element_ty).to(tl.float32) * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + at, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated(gate_up, out, n: tl.constexpr, width: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * width + tl.arange(0, width)
    inside = at < n
    gate = tl.load(gate_up + row * 2 * n + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * n + n + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + at, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, delta: torch.Tensor | None = None) -> torch.Tensor:
    """Compute Backend.rms_norm, or Backend.add_rms_norm if there is a `delta`.

    With a `delta`, x must be contiguous (else raises ValueError) and is changed in place.
    """
    if delta is not None and not x.is_contiguous():
        raise ValueError("x must be contiguous, for it is changed in place")
    x, n = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    if rows := x.numel() // n:
        width = triton.next_power_of_2(n)
        warps = min(16, max(1, width // 512))
        other = x if delta is None else delta.contiguous()
        _rms_norm[(rows,)](x, other, weight, out, eps, n, width, delta is not None, num_warps=warps)
    return out


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, n)
    width = min(1024, triton.next_power_of_2(n))
    if rows:
        _gated[(rows, triton.cdiv(n, width))](gate_up.contiguous(), out, n, width)
    return out
