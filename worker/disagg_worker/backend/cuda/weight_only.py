"""The product x W^T for a W that is stored in 8 or 4 bits and widened in registers.

With few rows the time is that of reading W, so a half or a quarter of a 16-bit weight's.

Integers are multiplied as they are (0..255 are exact in bfloat16) and corrected once per group:
sum x*(q - z)*s = s * (sum x*q - z * sum x). Two 4-bit values share a byte: the first half of each
unit of values is in the low nibbles, the second half in the high ones, so that both halves meet
contiguous parts of x.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from disagg_worker.backend.interface import Fp8Weight, GroupQuantizedWeight

_UNITS = (128, 64, 32)


@triton.jit(do_not_specialize=["rows"])
def _product(
    x, w, scale, zero, bias, out, rows,
    inputs: tl.constexpr, outputs: tl.constexpr, group: tl.constexpr, bits: tl.constexpr, biased: tl.constexpr,
    m: tl.constexpr, n: tl.constexpr, unit: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * m + tl.arange(0, m)
    output = tl.program_id(0) * n + tl.arange(0, n)
    row_in, out_in = row < rows, output < outputs
    half: tl.constexpr = unit // 2
    near, far = tl.arange(0, half), tl.arange(0, unit)
    acc = tl.zeros((m, n), tl.float32)
    kind = x.dtype.element_ty
    x_row = x + row.to(tl.int64)[:, None] * inputs
    w_row = output.to(tl.int64)
    for k in range(0, inputs, unit):
        if bits == 4:
            packed = tl.load(w + w_row[:, None] * (inputs // 2) + k // 2 + near[None, :], mask=out_in[:, None], other=0)
            low, high = (packed & 15).to(tl.float32).to(kind), (packed >> 4).to(tl.float32).to(kind)
            x_low = tl.load(x_row + k + near[None, :], mask=row_in[:, None], other=0.0)
            x_high = tl.load(x_row + k + half + near[None, :], mask=row_in[:, None], other=0.0)
            part = tl.dot(x_low, tl.trans(low), input_precision="ieee") + tl.dot(
                x_high, tl.trans(high), input_precision="ieee"
            )
            total = tl.sum(x_low.to(tl.float32), 1) + tl.sum(x_high.to(tl.float32), 1)
        else:
            values = tl.load(w + w_row[:, None] * inputs + k + far[None, :], mask=out_in[:, None], other=0.0)
            x_all = tl.load(x_row + k + far[None, :], mask=row_in[:, None], other=0.0)
            part = tl.dot(x_all, tl.trans(values.to(tl.float32).to(kind)), input_precision="ieee")
            total = tl.sum(x_all.to(tl.float32), 1)
        if group > 0:
            at = w_row * (inputs // group) + k // group
            s = tl.load(scale + at, mask=out_in, other=0.0)
            z = tl.load(zero + at, mask=out_in, other=0.0)
            acc += s[None, :] * (part - total[:, None] * z[None, :])
        else:
            acc += part
    if group == 0:
        acc = acc * tl.load(scale + output, mask=out_in, other=0.0)[None, :]
    if biased:
        acc += tl.load(bias + output, mask=out_in, other=0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=row_in[:, None] & out_in[None, :])


def unit_of(weight: GroupQuantizedWeight | Fp8Weight) -> int | None:
    """Return the number of inputs that a step of the kernel takes, a divisor of the group size.

    None means that the kernel cannot multiply this weight.
    """
    size = weight.group_size if isinstance(weight, GroupQuantizedWeight) else weight.weight.shape[1]
    return next((u for u in _UNITS if size % u == 0), None)


def pack4(q: torch.Tensor, unit: int) -> torch.Tensor:
    """Pack values 0..15 in pairs, as the kernel reads them: [out, in] -> [out, in / 2]."""
    halves = q.view(q.shape[0], -1, 2, unit // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(q.shape[0], -1).contiguous()


class WeightOnly:
    """A weight of 8 or 4 bits in the device's memory."""

    def __init__(self, weight: GroupQuantizedWeight | Fp8Weight, unit: int, device: torch.device) -> None:
        self._unit = unit
        if isinstance(weight, GroupQuantizedWeight):
            self.outputs, self.inputs = weight.q.shape
            self._bits, self._group = weight.bits, weight.group_size
            self._data = (pack4(weight.q, unit) if weight.bits == 4 else weight.q.contiguous()).to(device)
            self._zero = weight.zero.to(device, torch.float32).contiguous()
        else:
            self.outputs, self.inputs = weight.weight.shape
            self._bits, self._group = 8, 0
            self._data = weight.weight.to(device)
        self._scale = weight.scale.to(device, torch.float32).contiguous()
        if not self._group:
            self._zero = self._scale
        self.nbytes = self._data.nbytes + self._scale.nbytes + (self._zero.nbytes if self._group else 0)

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return x W^T plus the bias: [rows, in] -> [rows, out]."""
        rows = x.shape[0]
        out = x.new_empty(rows, self.outputs)
        m = min(64, max(16, triton.next_power_of_2(rows)))
        # There must be enough programs to keep the memory busy.
        n = 16 if self.outputs <= 8192 and m == 16 else 32 if m == 16 else 64
        if rows:
            _product[(triton.cdiv(self.outputs, n), triton.cdiv(rows, m))](
                x.contiguous(), self._data, self._scale, self._zero, self._scale if bias is None else bias, out, rows,
                self.inputs, self.outputs, self._group, self._bits, bias is not None, m, n, self._unit,
                num_warps=4, num_stages=4,
            )  # fmt: skip
        return out

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the widened weight [out, in], which the matrix units need for many rows."""
        if not self._group:
            return (self._data.to(torch.float32) * self._scale[:, None]).to(dtype)
        q = self._data
        if self._bits == 4:
            units = q.view(self.outputs, -1, 1, self._unit // 2)
            q = torch.cat((units & 15, units >> 4), 2)
        wide = q.reshape(self.outputs, -1, self._group).to(dtype)  # Integers up to 255 are exact.
        return ((wide - self._zero[..., None].to(dtype)) * self._scale[..., None].to(dtype)).view(self.outputs, -1)
