"""Tests of the roof line against published measurements, as stated in docs/planning.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_operator.performance.config_json import from_config
from disagg_operator.performance.hardware import GPUS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.roof_line import EFFICIENCIES, Efficiency, estimate, estimates

# Llama 2 70B on 4 GPUs with vLLM of 2023, from the table of Splitwise: the milliseconds of a prompt
# of 1,024 and of 8,192 tokens, and of a decode step at batch size 1.
SPLITWISE = {"H100": (106.0, 954.0, 29.4), "A100": (227.0, 2278.0, 44.5)}


def _profile(model: str, gpu: str, tensor: int, efficiency: str) -> Profile:
    found = estimate(KNOWN[model], GPUS[gpu], tensor, EFFICIENCIES[efficiency])
    assert found is not None
    return found


@pytest.mark.parametrize("gpu", SPLITWISE)
def test_the_eager_roof_line_is_within_15_percent_of_what_splitwise_measured(gpu: str) -> None:
    profile = _profile("llama-2-70b", gpu, 4, "eager")
    short, long, step = SPLITWISE[gpu]
    assert 1e3 * profile.isolated_s(1024) == pytest.approx(short, rel=0.15)
    assert 1e3 * profile.isolated_s(8192) == pytest.approx(long, rel=0.15)
    assert 1e3 * profile.step_s(1, 1024) == pytest.approx(step, rel=0.15)


@pytest.mark.parametrize(("batch", "measured_ms"), [(32, 36.9), (64, 52.4)])
def test_the_eager_roof_line_of_a_batch_is_within_30_percent(batch: int, measured_ms: float) -> None:
    assert 1e3 * _profile("llama-2-70b", "H100", 4, "eager").step_s(batch, batch * 1024) == pytest.approx(
        measured_ms, rel=0.30
    )


@pytest.mark.parametrize("gpu", SPLITWISE)
def test_the_tuned_roof_line_is_faster_than_2023_and_by_less_than_two_times(gpu: str) -> None:
    profile = _profile("llama-2-70b", gpu, 4, "tuned")
    for predicted_s, measured_ms in zip(
        (profile.isolated_s(1024), profile.isolated_s(8192), profile.step_s(1, 1024)), SPLITWISE[gpu], strict=True
    ):
        assert 0.5 * measured_ms < 1e3 * predicted_s < 1.1 * measured_ms


def test_the_tuned_roof_line_of_8b_on_one_h100_is_within_15_percent_of_the_published_parameters() -> None:
    """The guide of llm-d has 6.973 ms + 0.027 ms per sequence.

    It assumes half the FLOP/s in prefill. Kernels reach more, and current engines are faster.
    """
    profile = _profile("llama-3.1-8b", "H100", 1, "tuned")
    assert profile.d_s == pytest.approx(6.973e-3, rel=0.15)
    assert 0.5 * 32e-6 < profile.b_s_per_token < 32e-6
    assert profile.step_s(32, 0) == pytest.approx(6.973e-3 + 32 * 0.027e-3, rel=0.15)


def test_a_step_multiplies_while_it_reads_the_weights() -> None:
    """Few sequences take hardly longer than one; many take as long as multiplying."""
    profile = _profile("llama-3.1-70b", "H100", 4, "tuned")
    parameters = KNOWN["llama-3.1-70b"].base_parameters
    reading_s = 2 * parameters / (4 * 3350e9 * 0.80)
    multiplying_s = 2 * parameters / (4 * 989e12 * 0.78)
    equal = reading_s / multiplying_s
    few, many = profile.step_s(8, 0) - profile.step_s(1, 0), profile.step_s(equal, 0) - profile.step_s(0, 0)
    assert few < 0.25 * 7 * multiplying_s + 7 * profile.e_s_per_sequence
    assert many - profile.e_s_per_sequence * equal == pytest.approx(0.26 * reading_s, rel=0.02)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("llama-3.1-70b", 327_680), ("llama-3.1-8b", 131_072), ("qwen2.5-7b", 57_344), ("qwen3-8b", 147_456)],
)
def test_kv_bytes_per_token(model: str, expected: int) -> None:
    assert KNOWN[model].kv_bytes_per_token == expected


def test_a_70b_without_grouped_heads_would_need_2_6_mb_a_token() -> None:
    config = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "vocab_size": 32000,
    }
    assert from_config(config, "mha").kv_bytes_per_token == 2_621_440


def test_70b_fits_no_single_h100_and_half_of_it_in_8_bits_does_fit_two() -> None:
    model, h100 = KNOWN["llama-3.1-70b"], GPUS["H100"]
    assert [p.gpus for p in estimates(model, h100, Efficiency())] == [4, 8]
    assert estimate(model, GPUS["A10G"], 4, Efficiency()) is None
    eight = from_config(
        {
            "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
            "num_hidden_layers": 80, "vocab_size": 128256, "quantization_config": {"quant_method": "fp8"},
        },
        "fp8",
    )  # fmt: skip
    assert [p.gpus for p in estimates(eight, h100, Efficiency())] == [2, 4, 8]
    wide, narrow = estimate(eight, h100, 4, Efficiency()), estimate(model, h100, 4, Efficiency())
    assert wide is not None
    assert narrow is not None
    # FP8 doubles the FLOP/s, of which kernels reach a smaller share; all-reduces and norms stay.
    assert 0.7 * narrow.b_s_per_token < wide.b_s_per_token < 0.9 * narrow.b_s_per_token
    assert wide.kv_tokens > narrow.kv_tokens


def test_more_gpus_than_kv_heads_hold_heads_twice() -> None:
    model = KNOWN["qwen2.5-7b"]  # 4 KV heads, 28 heads
    assert [p.gpus for p in estimates(model, GPUS["H100"], Efficiency())] == [1, 2, 4]
    shape = KNOWN["llama-3.1-8b"]
    four, eight = (estimate(shape, GPUS["H100"], n, Efficiency()) for n in (4, 8))
    assert four is not None
    assert eight is not None
    assert eight.kv_tokens > 1.9 * four.kv_tokens  # with 8 KV heads none is held twice


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_the_catalogue_is_whole(gpu: object) -> None:
    g = GPUS[gpu.name]  # type: ignore[attr-defined]
    assert g.source.startswith("https://")
    assert g.memory_bytes > 20e9
    assert g.bandwidth_bytes_per_s > 5e11
    assert g.bf16_flops > 5e13
    assert g.fp8_flops is None or g.fp8_flops == pytest.approx(2 * g.bf16_flops, rel=0.02)


def test_the_figures_in_the_document_are_these(pytestconfig: pytest.Config) -> None:
    text = (Path(pytestconfig.rootpath) / "docs" / "planning.md").read_text()
    for gpu, words in (("H100", "{:.0f} / {:.0f} ms"), ("A100", "{:.0f} / {:,.0f} ms")):
        profile = _profile("llama-2-70b", gpu, 4, "eager")
        assert words.format(1e3 * profile.isolated_s(1024), 1e3 * profile.isolated_s(8192)) in text
    steps = [_profile("llama-2-70b", "H100", 4, "eager").step_s(b, b * 1024) for b in (1, 32, 64)]
    assert " / ".join(f"{1e3 * s:.1f}" for s in steps) in text
    small = _profile("llama-3.1-8b", "H100", 1, "tuned")
    assert f"{1e3 * small.d_s:.2f} ms, {1e6 * small.b_s_per_token:.1f} us" in text
