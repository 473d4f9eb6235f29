"""The backend over the CPU kernels.

Activations are float32 whatever the weights are, which costs nothing on a CPU and rounds less.

A row's result does not depend on the other rows (src/matmul.hpp), and a token attends with the same
arithmetic in a prompt and in a decode step (src/decode_attention.hpp), so its bits are the same
alone and in any batch, decoded and prefilled.
"""

from __future__ import annotations

import ctypes
import mmap

import torch

from disagg_worker.backend.cpu import library
from disagg_worker.backend.cpu.library import Matrix, MatrixKind, pointer
from disagg_worker.backend.interface import (
    Batch,
    DecodeProgram,
    DecoderNetwork,
    DenseWeight,
    Fp8Weight,
    GroupQuantizedWeight,
    HeadNorms,
    Linear,
    QkvShape,
    Rotary,
    Weight,
)
from disagg_worker.backend.plain import dequantized

_HUGE_PAGE_BYTES = 2 << 20
_LINE_BYTES = 64


def ask_for_huge_pages(memory: torch.Tensor) -> None:
    """Ask the operating system for huge pages for all whole pages of `memory`.

    Nothing changes if it has none.
    """
    page = mmap.PAGESIZE
    start = -(-memory.data_ptr() // page) * page
    size = (memory.data_ptr() + memory.nbytes - start) // page * page
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


class Arena:
    """A source of uninitialised bytes, in huge pages if the operating system grants them.

    Weights are streamed, and small pages would cost page-table walks. Matrices share chunks, since
    the end of a mapping that does not fill a huge page gets small ones.
    """

    _CHUNK_BYTES = 64 << 20

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, n_bytes: int) -> torch.Tensor:
        if self._used + n_bytes > len(self._chunk):
            size = -(-max(n_bytes, self._CHUNK_BYTES) // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
            chunk = torch.empty(size + _HUGE_PAGE_BYTES, dtype=torch.uint8)
            start = -chunk.data_ptr() % _HUGE_PAGE_BYTES
            self._chunk, self._used = chunk[start : start + size], 0
            ask_for_huge_pages(self._chunk)
        taken = self._chunk[self._used : self._used + n_bytes]
        self._used += -(-n_bytes // _LINE_BYTES) * _LINE_BYTES
        return taken


class PackedLinear:
    """Implements interface.Linear over float32 activations, with the weight packed in panels."""

    def __init__(
        self, backend: CpuBackend, weight: DenseWeight | GroupQuantizedWeight, bias: torch.Tensor | None
    ) -> None:
        self._backend = backend
        panel = backend.panel
        if isinstance(weight, DenseWeight):
            source = weight.weight.contiguous()
            kind = MatrixKind.BF16 if source.dtype == torch.bfloat16 else MatrixKind.F32
            group, self._scale, self._zero = 0, None, None
        else:
            source = weight.q.contiguous()
            kind = MatrixKind.INT8 if weight.bits == 8 else MatrixKind.INT4
            group = weight.group_size
            self._scale, self._zero = _in_panels(weight.scale, panel), _in_panels(weight.zero, panel)
        self.out_features, self.in_features = source.shape
        self._bias = None if bias is None else _padded(bias.float(), panel)
        panels = -(-self.out_features // panel)
        self._data = backend.arena.take(panels * kind.panel_bytes(panel, self.in_features))
        backend.kernels.disagg_pack(
            kind, self.in_features, 0, self.out_features, source.data_ptr(), self._data.data_ptr()
        )
        self.weight_bytes = self._data.nbytes + (
            self._scale.nbytes + self._zero.nbytes if self._scale is not None and self._zero is not None else 0
        )
        self.matrix = Matrix(
            kind,
            self.in_features,
            self.out_features,
            group,
            *map(pointer, (self._data, self._scale, self._zero, self._bias)),
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float().contiguous()
        out = torch.empty(x.shape[0], self.out_features)
        self._backend.kernels.disagg_matmul(
            self._backend.pool, self.matrix, x.data_ptr(), out.data_ptr(), x.shape[0], 0
        )
        return out


def _padded(rows: torch.Tensor, panel: int) -> torch.Tensor:
    """Return the rows with zeros appended up to a whole number of panels."""
    missing = -len(rows) % panel
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))).contiguous()


def _in_panels(table: torch.Tensor, panel: int) -> torch.Tensor:
    """Rearrange a table by panels: [out, groups] -> [panels, groups, panel]."""
    rows = _padded(table.float(), panel)
    return rows.view(-1, panel, rows.shape[1]).transpose(1, 2).contiguous()


class CpuBackend:
    """Implements interface.Backend with the loaded CPU kernels."""

    name = "cpu"
    fp8_cache = False
    exact = True
    decode_sizes: tuple[int, ...] = ()

    def __init__(self, kernels: ctypes.CDLL, threads: int) -> None:
        self.device = torch.device("cpu")
        self.kernels = kernels
        self.arena = Arena()
        self.panel: int = kernels.disagg_panel()
        # Whether inputs are rounded to bfloat16, for all weights but float32 ones.
        self.rounds_inputs = bool(kernels.disagg_pairs())
        self.pool = ctypes.c_void_p(kernels.disagg_pool(threads))

    def compute_dtype(self, model: torch.dtype) -> torch.dtype:
        return torch.float32

    def linear(self, weight: Weight, bias: torch.Tensor | None) -> Linear:
        if isinstance(weight, Fp8Weight):
            weight = DenseWeight(dequantized(weight).bfloat16())
        elif isinstance(weight, GroupQuantizedWeight) and weight.group_size % 2 and weight.scale.shape[1] > 1:
            weight = DenseWeight(dequantized(weight))  # The kernels take two inputs at a time.
        return PackedLinear(self, weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        n = x.shape[-1]
        self.kernels.disagg_norm(x.data_ptr(), weight.data_ptr(), eps, x.numel() // n, n, out.data_ptr())
        return out

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self.rms_norm(x.add_(delta), weight, eps)

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
        tokens = qkv.shape[0]
        q = torch.empty(tokens, shape.heads, shape.head_dim)
        norm_q, norm_k, eps = (norms.q.data_ptr(), norms.k.data_ptr(), norms.eps) if norms else (None, None, 0.0)
        self.kernels.disagg_store_qkv(
            library.cache_struct(cache),
            layer,
            shape.heads,
            qkv.data_ptr(),
            norm_q,
            norm_k,
            eps,
            rotary.cos.data_ptr(),
            rotary.sin.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            tokens,
            q.data_ptr(),
        )
        # `attend` reads the cache, where k and v are rounded to the cache's dtype.
        none = torch.empty(0)
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
        tokens, heads, head_dim = q.shape
        out = torch.empty(tokens, heads * head_dim)
        seen, struct = window or 0, library.cache_struct(cache)
        if batch.tables is not None and batch.lengths is not None:
            tables, lengths = batch.tables, batch.lengths
            self.kernels.disagg_attend_decode(
                self.pool,
                struct,
                layer,
                tables.data_ptr(),
                tables.shape[1],
                lengths.data_ptr(),
                tokens,
                heads,
                seen,
                q.data_ptr(),
                out.data_ptr(),
            )
            return out
        row_bytes = heads * head_dim * 4
        for c in batch.chunks:
            n, offset = c.stop - c.start, c.start * row_bytes
            self.kernels.disagg_attend_chunk(
                self.pool,
                struct,
                layer,
                c.table.data_ptr(),
                n,
                c.first + n,
                heads,
                seen,
                q.data_ptr() + offset,
                out.data_ptr() + offset,
            )
        return out

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        rows, n = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, n)
        self.kernels.disagg_gated(gate_up.data_ptr(), rows, n, out.data_ptr())
        return out

    def decode_program(self, network: DecoderNetwork, cache: torch.Tensor) -> DecodeProgram | None:
        # Blocks lie anywhere in the cache, and with small pages each costs a page-table walk.
        ask_for_huge_pages(cache)
        # Ranks add up partial sums between the layers, which is impossible within one call.
        return _DecodeStep(self, network, cache) if not network.is_split else None


class _DecodeStep:
    """A DecodeProgram that runs a whole decode step in one call.

    The result is bit for bit that of `Decoder.forward`: the same kernels run in the same order.
    """

    def __init__(self, backend: CpuBackend, network: DecoderNetwork, cache: torch.Tensor) -> None:
        self._backend, self._decoder, self._cache = backend, network, library.cache_struct(cache)
        layers = (library.LayerStruct * len(network.layers))()
        for struct, layer in zip(layers, network.layers, strict=True):
            norms = layer.head_norms
            struct.norm_in, struct.norm_mlp = layer.norm_in.data_ptr(), layer.norm_mlp.data_ptr()
            if norms is not None:
                struct.q_norm, struct.k_norm, struct.head_eps = norms.q.data_ptr(), norms.k.data_ptr(), norms.eps
            struct.window = layer.window or 0
            for name in ("qkv", "out", "gate_up", "down"):
                setattr(struct, name, _matrix(getattr(layer, name)))
        self._vocab = network.head.out_features
        self._network = library.Network(
            len(network.layers),
            network.shape.heads,
            network.hidden_size,
            network.layers[0].gate_up.out_features // 2,
            self._vocab,
            network.rms_norm_eps,
            layers,
            network.norm.data_ptr(),
            _matrix(network.head),
            network.rotary.cos.data_ptr(),
            network.rotary.sin.data_ptr(),
        )

    def __call__(self, batch: Batch, cache: torch.Tensor) -> torch.Tensor:
        if batch.tables is None or batch.lengths is None:
            raise ValueError("a decode batch has tables and lengths")
        x = self._decoder.embed(batch.token_ids)
        sequences = x.shape[0]
        logits = torch.empty(sequences, self._vocab)
        self._backend.kernels.disagg_decode(
            self._backend.pool,
            self._network,
            self._cache,
            x.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.tables.data_ptr(),
            batch.tables.shape[1],
            batch.lengths.data_ptr(),
            sequences,
            logits.data_ptr(),
        )
        return logits


def _matrix(linear: Linear) -> Matrix:
    if not isinstance(linear, PackedLinear):
        raise TypeError("the weight was not packed by this backend")
    return linear.matrix
