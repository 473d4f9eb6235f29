"""Tests of speeds from kernel tables, as far as they need no AISimulate.

`make bench-aisimulate` runs it. A stand-in here has its interface and tables of known times.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from disagg_operator.performance import kernel_tables
from disagg_operator.performance.model_shape import KNOWN, ModelShape
from disagg_operator.performance.profile import ProfileError

LLAMA = {
    "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
    "num_hidden_layers": 80, "vocab_size": 128256, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
H100_VLLM = kernel_tables.TableSource("h100_sxm", "vllm")


class Engine:
    """The stand-in for a compiled engine, whose times are those of a profile."""

    asked: list[tuple[str, str, str, dict[str, Any]]] = []
    odd = False

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus

    @classmethod
    def compile(cls, model: str, system: str, backend: str, **wanted: Any) -> Engine:
        cls.asked.append((model, system, backend, wanted))
        if wanted["tp_size"] == 8:
            raise RuntimeError("there is no table for 8 GPUs\nand a trace")
        return cls(wanted["tp_size"])

    def predict_prefill_latency(self, batch: int, tokens: int) -> float:
        return (10 + 0.24 * tokens) / self.gpus

    def predict_decode_latency(self, batch: int, tokens: int) -> float:
        if self.odd:
            return 1.0 if batch % 3 else 100.0
        return (60 + 0.1 * batch + 1e-4 * batch * tokens) / self.gpus


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of configurations, beside the stand-in for AISimulate."""
    sdk, database = ModuleType("aisimulate_core.sdk"), ModuleType("aisimulate_core.sdk.perf_database")
    sdk.__file__ = str(tmp_path / "sdk" / "__init__.py")
    sdk.EngineHandle = Engine  # type: ignore[attr-defined]
    database.get_version_slots = lambda system, backend: {"current": "0.24.0"}  # type: ignore[attr-defined]
    modules = {"aisimulate_core": ModuleType("aisimulate_core"), sdk.__name__: sdk, database.__name__: database}
    for name, module in {**modules, "aisimulate_core.sdk.engine": ModuleType("engine")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(metadata, "version", lambda name: "0.13")
    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(Engine, "odd", False)
    folder = tmp_path / "model_configs"
    folder.mkdir()
    (folder / "meta-llama--Meta-Llama-3.1-70B_config.json").write_text(json.dumps(LLAMA))
    (folder / "nvidia--Llama-70B-FP8_config.json").write_text(json.dumps(LLAMA))
    (folder / "nvidia--Llama-70B-FP8_hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    (folder / "nvidia--L-70B-NVFP4_config.json").write_text(json.dumps(LLAMA))
    (folder / "nvidia--L-70B-NVFP4_hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    (folder / "a--list_config.json").write_text("[]")
    (folder / "a--half_config.json").write_text("{")
    return folder


@pytest.mark.parametrize("text", ["aisimulate:h100_sxm", "aisimulate:h100/vllm", "aisimulate:h100_sxm/vllm/1"])
def test_what_names_no_tables_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ProfileError, match=r"aisimulate:SYSTEM/BACKEND.*h100_sxm"):
        kernel_tables.source_of(text)


def test_a_file_names_no_tables() -> None:
    assert kernel_tables.source_of("profile.json") is None
    assert kernel_tables.source_of("aisimulate:h200_sxm/sglang") == kernel_tables.TableSource("h200_sxm", "sglang")
    assert str(H100_VLLM) == "aisimulate:h100_sxm/vllm"


def test_without_the_package_it_says_what_to_install() -> None:
    with pytest.raises(ProfileError, match=r"pip install 'disagg\[aisimulate\]'"):
        kernel_tables.read(H100_VLLM, KNOWN["llama-3.1-70b"])


@pytest.mark.usefixtures("installed")
def test_there_is_a_profile_for_each_number_of_gpus_that_has_tables() -> None:
    said: list[str] = []
    (found,) = kernel_tables.read(H100_VLLM, KNOWN["llama-3.3-70b"], say=said.append)  # 2 do not fit, 8 have no table
    assert found.profile.gpus == 4
    assert found.profile.isolated_s(1000) == pytest.approx(0.25 / 4, rel=0.02)
    assert found.profile.step_s(64, 64 * 1024) == pytest.approx((60 + 6.4 + 6.5536) / 4000, rel=0.02)
    assert found.words.startswith("meta-llama/Meta-Llama-3.1-70B on 4 x H100 with vllm 0.24.0, from the kernel tables")
    assert len(said) == 3
    assert all(wanted["kvcache_quant_mode"] == "bfloat16" for _, _, _, wanted in Engine.asked)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("shape", "name", "wanted"),
    [
        (KNOWN["llama-3.1-70b"].at_bits(8, 8), "nvidia/Llama-70B-FP8", {"kvcache_quant_mode": "fp8"}),
        (
            KNOWN["llama-3.1-70b"].at_bits(16, 8),
            "meta-llama/Meta-Llama-3.1-70B",
            {"kvcache_quant_mode": "fp8"},
        ),
    ],
)
def test_the_bits_are_those_of_the_model(shape: ModelShape, name: str, wanted: dict[str, str]) -> None:
    kernel_tables.read(H100_VLLM, shape, 4)
    assert Engine.asked == [(name, "h100_sxm", "vllm", {"tp_size": 4, **wanted})]


def test_bits_of_no_known_model_are_asked_for(installed: Path) -> None:
    (installed / "nvidia--Llama-70B-FP8_config.json").unlink()
    kernel_tables.read(H100_VLLM, KNOWN["llama-3.1-70b"].at_bits(8, 16), 4)
    assert Engine.asked[0][3]["gemm_quant_mode"] == "fp8_static"
    with pytest.raises(ProfileError, match="no weights of 4 bits"):
        kernel_tables.read(H100_VLLM, KNOWN["llama-3.1-70b"].at_bits(4, 16), 4)


@pytest.mark.usefixtures("installed")
def test_what_cannot_be_used_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match=r"knows no model of the shape of llama-3\.1-8b"):
        kernel_tables.read(H100_VLLM, KNOWN["llama-3.1-8b"])
    with pytest.raises(ProfileError, match=r"llama-3.1-70b: 8 GPUs: there is no table for 8 GPUs$"):
        kernel_tables.read(H100_VLLM, KNOWN["llama-3.1-70b"], 8)
    with pytest.raises(ProfileError, match="the weights do not fit"):
        kernel_tables.read(H100_VLLM, KNOWN["llama-3.1-70b"], 1)
    monkeypatch.setattr(Engine, "odd", True)
    with pytest.raises(ProfileError, match=r"4 GPUs: the times differ by \d+ % from any profile"):
        kernel_tables.read(H100_VLLM, KNOWN["llama-3.1-70b"], 4)
