"""Tests of the fit of a profile to tables of times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from disagg_operator.performance.expert_profile import ExpertProfile
from disagg_operator.performance.hardware import GPUS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.roof_line import EFFICIENCIES, estimate
from disagg_operator.performance.table_fit import PROMPTS_TOKENS, Tables, from_tables

LIKE = Profile(4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 400_000, max_running=256, batch_tokens=2048)
TRUE = replace(
    LIKE, a_s=9e-3, b_s_per_token=60e-6, c_s_per_token2=0.7e-9, d_s=15e-3, e_s_per_sequence=30e-6,
    f_s_per_token=30e-9, h_s_per_sequence2=80e-9,
)  # fmt: skip


def tables(true: Profile, seen: list[tuple[int, int]] | None = None) -> Tables:
    def step_s(sequences: int, held: int) -> float:
        if seen is not None:
            seen.append((sequences, held))
        return true.step_s(sequences, sequences * held)

    return Tables(lambda tokens: true.isolated_s(tokens), step_s)


def test_the_coefficients_of_a_profile_are_found_again() -> None:
    found = from_tables(tables(TRUE), LIKE)
    assert found.worst_error < 1e-6
    for name in ("a_s", "b_s_per_token", "c_s_per_token2", "d_s", "e_s_per_sequence", "f_s_per_token"):
        assert getattr(found.profile, name) == pytest.approx(getattr(TRUE, name), rel=1e-4)
    assert (found.profile.kv_tokens, found.profile.batch_tokens, found.profile.gpus) == (400_000, 2048, 4)


def test_only_steps_are_looked_up_that_the_worker_can_make() -> None:
    seen: list[tuple[int, int]] = []
    found = from_tables(tables(TRUE, seen), replace(LIKE, kv_tokens=20_000, max_running=64), context_tokens=4096)
    assert max(n for n, _ in seen) == 64
    assert max(held for _, held in seen) < 4096
    assert all(n * held <= 20_000 for n, held in seen)
    lengths = [r.what for r in found.residuals if r.what.endswith("alone")]
    assert lengths == [f"{n} tokens alone" for n in PROMPTS_TOKENS if n <= 4096]


def test_what_no_profile_describes_is_told_by_the_residuals() -> None:
    def step_s(sequences: int, held: int) -> float:
        return 0.1 if sequences == 1 else 0.01

    assert from_tables(Tables(TRUE.isolated_s, step_s), LIKE).worst_error > 0.3


def test_a_step_is_never_free() -> None:
    found = from_tables(Tables(TRUE.isolated_s, lambda n, held: 1e-5 * n * held), LIKE)
    assert found.profile.d_s > 0


def test_steps_with_experts_read_those_that_their_sequences_use() -> None:
    like = estimate(KNOWN["qwen3-30b-a3b"], GPUS["H100"], 2, EFFICIENCIES["tuned"])
    assert isinstance(like, ExpertProfile)
    true = replace(like, d_s=like.d_s + 2e-3, e_s_per_sequence=1.2 * like.e_s_per_sequence)
    found = from_tables(Tables(TRUE.isolated_s, tables(true).step_s), like)
    assert found.worst_error < 0.01
    assert found.profile.full_tokens <= 1  # the times of prompts contain the reading
    assert found.profile.prefill_s(4096, 4096**2) == pytest.approx(TRUE.isolated_s(4096), rel=1e-3)
