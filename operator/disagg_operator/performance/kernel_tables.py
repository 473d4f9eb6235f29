"""Speeds from the kernel tables of NVIDIA's AISimulate, which replace a measured profile.

The tables are measured times of single kernels on NVIDIA's GPUs. They, and what adds the kernels
of a step up, are in the package `aisimulate`, an optional one: `pip install 'disagg[aisimulate]'`.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from disagg_operator.performance.config_json import from_config
from disagg_operator.performance.fit_quality import MOST_ERROR
from disagg_operator.performance.hardware import GPUS, Gpu
from disagg_operator.performance.model_shape import ModelShape, PlanError
from disagg_operator.performance.profile import Profile, ProfileError
from disagg_operator.performance.roof_line import EFFICIENCIES, estimate
from disagg_operator.performance.table_fit import FromTables, Tables, from_tables

PREFIX = "aisimulate:"
SYSTEMS = {"a100_sxm": "A100", "h100_sxm": "H100", "h200_sxm": "H200", "b200_sxm": "B200", "l40s": "L40S"}
"""The names that AISimulate has for GPUs, and ours."""
_BITS = {16: {"gemm_quant_mode": "bfloat16", "moe_quant_mode": "bfloat16"},
         8: {"gemm_quant_mode": "fp8_static", "moe_quant_mode": "fp8"}}  # fmt: skip
_CONFIG, _QUANTISATION = "_config.json", "_hf_quant_config.json"
_LARGEST_CONFIG_BYTES = 1_000_000  # lists of single layers, of which none describes a shape
# What it raises if it has no table for a kernel, or none of this shape.
_UNKNOWN = (ValueError, RuntimeError, KeyError)


@dataclass(frozen=True, slots=True)
class TableSource:
    """The tables of a GPU and an inference engine."""

    system: str
    backend: str
    """The inference engine, by the name that AISimulate has for it."""

    @property
    def gpu(self) -> Gpu:
        """The GPU, as `disagg plan` knows it."""
        return GPUS[SYSTEMS[self.system]]

    def __str__(self) -> str:
        return f"{PREFIX}{self.system}/{self.backend}"


@dataclass(frozen=True, slots=True)
class TableProfile:
    """A profile from kernel tables, and where it comes from in words."""

    profile: Profile
    words: str
    fitted: FromTables


def source_of(text: str) -> TableSource | None:
    """Return the tables that an argument names, or None if it names something else.

    Raises ProfileError if it names tables that there are not.
    """
    if not text.startswith(PREFIX):
        return None
    found = re.fullmatch(r"(\w+)/(\w+)", text.removeprefix(PREFIX))
    if found is None or found[1] not in SYSTEMS:
        raise ProfileError(f"{text}: is not {PREFIX}SYSTEM/BACKEND with a system of {', '.join(SYSTEMS)}")
    return TableSource(found[1], found[2])


def read(
    source: TableSource, model: ModelShape, tensor: int = 0, say: Callable[[str], None] = lambda text: None
) -> list[TableProfile]:
    """Return a profile for each number of GPUs that a replica may have, or for `tensor` GPUs.

    The weights and the cache have the bits of the model. Raises ProfileError.
    """
    say(f"loading AISimulate for {source}")
    _load()
    name, same_bits = known_as(model)
    found, why = [], f"the weights do not fit {source.gpu.max_tensor} GPUs"
    for n in [tensor] if tensor else [2**i for i in range(source.gpu.max_tensor.bit_length())]:
        like = estimate(model, source.gpu, n, EFFICIENCIES["tuned"]) if model.heads % n == 0 else None
        if like is None:
            continue
        say(f"adding up the kernels of {model.name} on {n} x {source.gpu.name} with {source.backend}")
        try:
            fitted = from_tables(tables_of(source, name, model, n, same_bits), like, model.context_tokens)
        except _UNKNOWN as error:
            why = f"{n} GPUs: {str(error).splitlines()[0][:200]}"
            continue
        if fitted.worst_error > MOST_ERROR:
            why = f"{n} GPUs: the times differ by {100 * fitted.worst_error:.0f} % from any profile"
            continue
        found.append(TableProfile(fitted.profile, _words(source, name, n, fitted), fitted))
    if not found:
        raise ProfileError(f"{source}: has no usable times of {model.name}: {why}")
    return found


def _load() -> Any:
    """Return the part of AISimulate that adds kernels up. Raises ProfileError if there is none."""
    try:
        sdk = importlib.import_module("aisimulate_core.sdk")
        importlib.import_module("aisimulate_core.sdk.engine")
    except ImportError as error:
        raise ProfileError(
            f"{PREFIX} needs the package aisimulate, which is not installed ({error}): pip install 'disagg[aisimulate]'"
        ) from None
    for logger in ("aisimulate", "aisimulate_core"):
        logging.getLogger(logger).setLevel(logging.ERROR)  # it tells which table it falls back to
    return sdk


def tables_of(source: TableSource, name: str, model: ModelShape, tensor: int, same_bits: bool) -> Tables:
    """Return the times of a replica of `tensor` GPUs. Raises one of _UNKNOWN."""
    wanted: dict[str, Any] = {"tp_size": tensor, "kvcache_quant_mode": "fp8" if model.kv_bits == 8 else "bfloat16"}
    if model.experts is not None:
        wanted["moe_tp_size"] = tensor
    if not same_bits:
        if model.weight_bits not in _BITS:
            raise ValueError(f"AISimulate knows {model.name} in no weights of {model.weight_bits} bits")
        wanted |= _BITS[model.weight_bits]
    engine = _load().EngineHandle.compile(name, source.system, source.backend, **wanted)
    return Tables(
        lambda tokens: float(engine.predict_prefill_latency(1, tokens)) / 1000,
        lambda sequences, held: float(engine.predict_decode_latency(sequences, held)) / 1000,
    )


def known_as(model: ModelShape) -> tuple[str, bool]:
    """Return the name of a model of this shape that AISimulate knows, and whether its bits agree.

    Raises ProfileError if there is none.
    """
    folder = Path(str(_load().__file__)).parent.parent / "model_configs"
    agreeing: list[str] = []
    other: list[str] = []
    for path in sorted(folder.glob(f"*{_CONFIG}"), key=lambda path: (len(path.name), path.name)):
        shape = _shape(path)
        if shape is not None and _bare(shape) == _bare(model):
            same = shape.weight_bits == model.weight_bits and shape.routed_bits == model.routed_bits
            (agreeing if same else other).append(path.name.removesuffix(_CONFIG).replace("--", "/"))
    if not agreeing and not other:
        raise ProfileError(f"{PREFIX} AISimulate knows no model of the shape of {model.name}")
    return (agreeing or other)[0], bool(agreeing)


def _shape(path: Path) -> ModelShape | None:
    """Return the shape of a configuration that AISimulate brings, or None if there is none."""
    if path.name.endswith(_QUANTISATION) or path.stat().st_size > _LARGEST_CONFIG_BYTES:
        return None
    beside = path.with_name(path.name.removesuffix(_CONFIG) + _QUANTISATION)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        shape = from_config(raw, path.stem) if isinstance(raw, Mapping) else None
        if shape is None or not beside.exists():
            return shape
        stored = json.loads(beside.read_text(encoding="utf-8"))["quantization"]["quant_algo"]
    except (ValueError, KeyError, TypeError, PlanError):
        return None
    return shape.at_bits(8, 16) if stored == "FP8" else None


def _bare(shape: ModelShape) -> ModelShape:
    """Return a shape without what does not change the size of a matrix."""
    experts = None if shape.experts is None else replace(shape.experts, bits=None)
    return replace(shape, name="", weight_bits=16, kv_bits=16, context_tokens=None, experts=experts)


def _words(source: TableSource, name: str, tensor: int, fitted: FromTables) -> str:
    database = importlib.import_module("aisimulate_core.sdk.perf_database")
    slots = database.get_version_slots(source.system, source.backend) or {}
    engine = " ".join(filter(None, (source.backend, slots.get("current", ""))))
    return (
        f"{name} on {tensor} x {source.gpu.name} with {engine}, from the kernel tables of AISimulate "
        f"{metadata.version('aisimulate')}, fitted within {100 * fitted.worst_error:.0f} %"
    )
