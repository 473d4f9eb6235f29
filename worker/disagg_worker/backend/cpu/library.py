"""The C functions of src/kernels.cpp and their structs, for ctypes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_size_t, c_void_p
from enum import IntEnum
from pathlib import Path

import torch


class MatrixKind(IntEnum):
    """The format of a packed weight."""

    F32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3

    def panel_bytes(self, panel: int, inputs: int) -> int:
        """Return the bytes of a panel with `inputs` inputs, which all kinds but float32 take in
        pairs.
        """
        if self is MatrixKind.F32:
            return 4 * panel * inputs
        return {MatrixKind.BF16: 4, MatrixKind.INT8: 2, MatrixKind.INT4: 1}[self] * panel * -(-inputs // 2)


class Matrix(Structure):
    """The struct `Matrix` of formats.hpp."""

    _fields_ = (
        ("kind", c_int32),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("group", c_int32),
        ("data", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("bias", c_void_p),
    )


class LayerStruct(Structure):
    """The struct `Layer` of kernels.cpp."""

    _fields_ = (
        ("norm_in", c_void_p),
        ("norm_mlp", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("head_eps", c_float),
        ("window", c_int32),
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
    )


class Network(Structure):
    """The struct `Network` of kernels.cpp."""

    _fields_ = (
        ("layers", c_int32),
        ("heads", c_int32),
        ("hidden", c_int32),
        ("inner", c_int32),
        ("vocab", c_int32),
        ("eps", c_float),
        ("layer", POINTER(LayerStruct)),
        ("norm", c_void_p),
        ("head", Matrix),
        ("cos", c_void_p),
        ("sin", c_void_p),
    )


class Cache(Structure):
    """The struct `Cache` of attention.hpp."""

    _fields_ = (
        ("data", c_void_p),
        ("bf16", c_int32),
        ("layers", c_int32),
        ("kv_heads", c_int32),
        ("size", c_int32),
        ("head_dim", c_int32),
    )


def cache_struct(cache: torch.Tensor) -> Cache:
    """Return the struct by which the kernels see the cache [block, layer, 2, kv_head, token in
    block, head_dim].
    """
    _, layers, _, kv_heads, size, head_dim = cache.shape
    return Cache(cache.data_ptr(), cache.dtype == torch.bfloat16, layers, kv_heads, size, head_dim)


_INT, _POINTER, _FLOAT = ctypes.c_int, c_void_p, c_float
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "disagg_panel": (_INT, []),
    "disagg_pairs": (_INT, []),
    "disagg_sizes": (c_size_t, [_INT]),
    "disagg_pool": (_POINTER, [_INT]),
    "disagg_pool_free": (None, [_POINTER]),
    "disagg_pack": (None, [_INT, _INT, _INT, _INT, _POINTER, _POINTER]),
    "disagg_matmul": (None, [_POINTER, POINTER(Matrix), _POINTER, _POINTER, _INT, _INT]),
    "disagg_norm": (None, [_POINTER, _POINTER, _FLOAT, _INT, _INT, _POINTER]),
    "disagg_gated": (None, [_POINTER, _INT, _INT, _POINTER]),
    "disagg_store_qkv": (None, [POINTER(Cache), _INT, _INT, *[_POINTER] * 3, _FLOAT, *[_POINTER] * 4, _INT, _POINTER]),
    "disagg_attend_decode": (
        None,
        [_POINTER, POINTER(Cache), _INT, _POINTER, _INT, _POINTER, _INT, _INT, _INT, _POINTER, _POINTER],
    ),
    "disagg_attend_chunk": (
        None,
        [_POINTER, POINTER(Cache), _INT, _POINTER, _INT, _INT, _INT, _INT, _POINTER, _POINTER],
    ),
    "disagg_decode": (
        None,
        [_POINTER, POINTER(Network), POINTER(Cache), *[_POINTER] * 4, _INT, _POINTER, _INT, _POINTER],
    ),
}


def load(path: Path) -> ctypes.CDLL:
    """Load the library and declare its functions. Calls release the interpreter's lock.

    Raises ImportError if a struct has another size than here.
    """
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for i, struct in enumerate((Matrix, LayerStruct, Network, Cache)):
        if library.disagg_sizes(i) != ctypes.sizeof(struct):
            raise ImportError(f"{path.name}: {struct.__name__} has another layout")
    return library


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
