"""Tests of profiles: their coefficients, and reading them; a wrong value is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.performance.profile import PROFILES, ProfileError, parse, to_text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpus", 0), ("gpus", 1.5), ("a_s", -1), ("d_s", 0), ("kv_tokens", "many"), ("batch_tokens", 0),
        ("max_running", True), ("colour", 1), ("b_s_per_token", float("nan")), ("batch_wait_s", -0.1),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_field(field: str, value: object) -> None:
    raw = json.loads(to_text(PROFILES["8b-h100"])) | {field: value}
    with pytest.raises(ProfileError, match=field):
        parse("p.json", json.dumps(raw))


@pytest.mark.parametrize("kv_tokens", [1.0, 800.0])
def test_where_more_sequences_cost_nothing_the_batch_is_what_fits(kv_tokens: float) -> None:
    flat = replace(PROFILES["8b-h100"], e_s_per_sequence=0.0, f_s_per_token=0.0)
    assert flat.best_batch(0.05, kv_tokens) == flat.max_running
    assert flat.decode_tokens_per_s(0.05, kv_tokens) == pytest.approx(flat.max_running / flat.d_s, rel=0.01)
    assert flat.best_batch(0.001, kv_tokens) == 1


def test_prompts_that_take_no_time_are_no_profile() -> None:
    free = replace(PROFILES["8b-h100"], a_s=0.0, b_s_per_token=0.0, c_s_per_token2=0.0)
    with pytest.raises(ProfileError, match="no prompt is free"):
        parse("p.json", to_text(free))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"gpus": 1}'])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ProfileError, match=r"p\.json"):
        parse("p.json", text)


@given(st.floats(1, 500), st.floats(1, 4000), st.sampled_from([0.0, 1e-7, 1e-4]))
def test_the_sequences_that_a_step_has_time_for_take_that_time(sequences: float, held: float, square: float) -> None:
    p = replace(PROFILES["8b-h100"], h_s_per_sequence2=square)
    assert p.sequences_within(p.step_s(sequences, sequences * held), held) == pytest.approx(sequences, rel=1e-6)


def test_taking_sequences_in_is_spread_over_their_tokens() -> None:
    p = replace(PROFILES["8b-h100"], take_in_s=0.01)
    assert p.serving(100).step_s(8, 0) == pytest.approx(p.step_s(8, 0) + 8 * 0.01 / 100)
    assert p.serving(0).take_in_s == 0.0


def test_a_straight_profile_is_the_same_at_any_batch_and_spares_nothing() -> None:
    p = PROFILES["8b-h100"]
    assert p.around(17) is p
    assert (p.unread_s(17), p.lone_s(100, 10_000), p.full_tokens, p.request_tokens) == (0.0, 0.0, 0.0, p.kv_tokens)


def test_under_load_prompts_share_batches_and_a_long_one_has_its_own() -> None:
    p = replace(PROFILES["8b-h100"], batch_tokens=1000)
    short = p.prefill_work_s(100, 100 * 100, 100 * 100**2)  # 11.5 batches, 15 % are not full
    assert short == pytest.approx(11.5 * p.a_s + p.b_s_per_token * 1e4 + p.c_s_per_token2 * 1e6)
    long = p.prefill_work_s(2, 2 * 5000, 2 * 5000**2)
    assert long == pytest.approx(2 * p.isolated_s(5000))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_read_as_it_was_written(name: str) -> None:
    assert parse(name, to_text(PROFILES[name])) == PROFILES[name]


def test_half_a_gpu_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"gpus: 1\.5 is not a whole number"):
        parse("p", to_text(replace(PROFILES["8b-h100"], gpus=1.5)))  # type: ignore[arg-type]


def test_a_curve_is_replaced_by_a_line_that_is_exact_at_one_number_and_too_slow_below_it() -> None:
    curved = replace(PROFILES["8b-h100"], h_s_per_sequence2=40e-9)
    line = curved.linear_at(100)
    assert line.h_s_per_sequence2 == 0
    assert line.step_s(100, 1000) == pytest.approx(curved.step_s(100, 1000))
    assert all(line.step_s(n, 1000) > curved.step_s(n, 1000) for n in (1, 50, 99))
    assert PROFILES["8b-h100"].linear_at(100) is PROFILES["8b-h100"]


def test_sequences_are_multiplied_together_with_a_chunk() -> None:
    """What reading the weights hid is no longer hidden beside a chunk that takes longer."""
    p = replace(PROFILES["8b-h100"], e_s_per_sequence=5e-6, h_s_per_sequence2=10e-9)
    with_chunk_s = p.step_s(64, 64_000) + p.chunk_s(2048, 64, 4000)
    together_s = p.a_s + p.b_s_per_token * (2048 + 64) + p.f_s_per_token * 64_000
    assert with_chunk_s == pytest.approx(together_s)
    slow = replace(p, e_s_per_sequence=1e-3)  # sequences that take longer than tokens of a chunk anyhow
    assert slow.chunk_s(2048, 64, 4000) == pytest.approx(slow.a_s + slow.b_s_per_token * 2048 - slow.d_s)
