"""The quantisation of a checkpoint is read right, and what can't be read is refused by name."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.errors import ModelError
from disagg_worker.model.quantization_config import StoredQuantization, parse_quantization

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}


def compressed(form: str = "pack-quantized", weights: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    given = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": True} | (weights or {})
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": given}},
        **change,
    }


CHANNEL = {"strategy": "channel"}
FLOAT = {"strategy": "channel", "type": "float", "num_bits": 8}
BYTES = {"strategy": "channel", "num_bits": 8}
READ: list[tuple[Any, StoredQuantization | None]] = [
    (None, None),
    (GPTQ, StoredQuantization("gptq", 4, 128, 1)),
    (GPTQ | {"bits": 8, "group_size": -1}, StoredQuantization("gptq", 8, 0, 1)),
    (GPTQ | {"group_size": None, "checkpoint_format": "gptq_v2"}, StoredQuantization("gptq", 4, 0, 0)),
    (AWQ, StoredQuantization("awq", 4, 128)),
    (AWQ | {"version": "GEMM"}, StoredQuantization("awq", 4, 128)),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, StoredQuantization("awq", 4, 64)),
    (compressed(), StoredQuantization("packed", 4, 128)),
    (compressed(weights={"num_bits": 8}), StoredQuantization("packed", 8, 128)),
    (compressed(weights=CHANNEL), StoredQuantization("packed", 4, 0)),
    (compressed(weights={"strategy": "group", "group_size": -1}), StoredQuantization("packed", 4, 0)),
    (compressed("int-quantized", BYTES), StoredQuantization("int8", 8, 0)),
    (compressed("naive-quantized", BYTES), StoredQuantization("int8", 8, 0)),
    (compressed("float-quantized", FLOAT | {"strategy": "tensor"}), StoredQuantization("fp8", 8, 0)),
    (compressed("naive-quantized", FLOAT), StoredQuantization("fp8", 8, 0)),
    (compressed(sparsity_config={"format": "dense"}, kv_cache_scheme=None), StoredQuantization("packed", 4, 128)),
]
REFUSED: list[tuple[Any, str]] = [
    ("int4", "is not an object"),
    ({}, "quant_method"),
    ({"quant_method": "bitsandbytes"}, "quant_method: 'bitsandbytes'"),
    (GPTQ | {"bits": 3}, "bits: 3"),
    (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format: 'marlin'"),
    (GPTQ | {"group_size": 4}, "group_size: 4"),
    (GPTQ | {"group_size": True}, "group_size: True"),
    (GPTQ | {"group_size": "128"}, "group_size: '128'"),
    (AWQ | {"bits": 8}, "bits: 8"),
    ({"quant_method": "awq", "w_bit": 3}, "bits: 3"),
    (AWQ | {"version": "gemv"}, "version: 'gemv'"),
    (compressed(config_groups={}), "config_groups"),
    (compressed(config_groups=[1]), "config_groups"),
    (compressed(config_groups={"a": {}, "b": {}}), "config_groups"),
    (compressed(config_groups={"a": 5}), r"config_groups\.weights: None"),
    (compressed(config_groups={"a": {}}), r"config_groups\.weights: None"),
    (compressed(sparsity_config={"format": "sparse-24"}), r"sparsity_config\.format: 'sparse-24'"),
    (compressed(sparsity_config=True), "sparsity_config: True"),
    (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    (compressed(weights={"actorder": "group"}), r"actorder: 'group'"),
    (compressed(weights={"symmetric": False}), r"symmetric: False"),
    (compressed(weights={"strategy": "block"}), r"strategy: 'block'"),
    (compressed(weights={"strategy": None}), r"strategy: None"),
    (compressed(weights={"group_size": 3}), r"config_groups\.weights\.group_size: 3"),
    (compressed("marlin-24"), "format: 'marlin-24'"),
    (compressed(weights={"num_bits": 3}), "format: 'pack-quantized'"),
    (compressed("float-quantized", BYTES), "format: 'float-quantized'"),
]


@pytest.mark.parametrize(("raw", "stored"), READ)
def test_what_can_be_read_is_read(raw: Any, stored: StoredQuantization | None) -> None:
    assert parse_quantization(raw) == stored


@pytest.mark.parametrize(("raw", "words"), REFUSED)
def test_what_can_not_be_read_is_refused_by_name(raw: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse_quantization(raw)


FIELDS = st.sampled_from(
    sorted({*GPTQ, *AWQ, *compressed(), "checkpoint_format", "w_bit", "sparsity_config", "kv_cache_scheme"})
)
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 4, 8, -1, "gptq", "awq", "compressed-tensors", "gemm", [], {}, {"g": {}}, {"g": {"weights": {}}}]
)


@given(st.sampled_from([GPTQ, AWQ, compressed()]), st.dictionaries(FIELDS, VALUES, max_size=3))
def test_whatever_is_written_there_is_read_or_refused(base: dict[str, Any], change: dict[str, Any]) -> None:
    with contextlib.suppress(ModelError):
        assert parse_quantization(base | change) is not None
