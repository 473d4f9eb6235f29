"""The speed of a worker is learned from measurements.

It is exact if the intervals tell the terms apart; otherwise the prior's proportions remain.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples

from disagg_operator.autoscaling.policy.learning import Evidence, Learned, factors, observe, profile
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals
from disagg_operator.performance.profile import PROFILES, Profile

TRUE = PROFILES["70b-h100-tp4"]
PODS = Pods(3, 3)


def worked(true: Profile, i: int, noise: float = 1.0) -> Observation:
    """Return an interval of batches and steps, whose mix changes with i."""
    batches, prompt = 20.0 + 3 * (i % 5), 200.0 + 150 * (i % 7)
    tokens = batches * (3 + i % 3) * prompt
    steps, sequences, context = 400.0 + 10 * i % 90, 5.0 + 6 * (i % 8), 500.0 + 200 * (i % 6)
    kv = steps * sequences * context
    return Observation(
        15.0 * i,
        15.0,
        PrefillSignals(
            PODS, batches=batches, batch_tokens=tokens, batch_tokens_squared=tokens * prompt,
            batch_s=noise * (true.a_s * batches + true.b_s_per_token * tokens + true.c_s_per_token2 * tokens * prompt),
        ),
        DecodeSignals(
            PODS, steps=steps, step_sequences=steps * sequences, step_kv_tokens=kv,
            step_s=noise * (true.d_s * steps + true.e_s_per_sequence * steps * sequences + true.f_s_per_token * kv),
        ),
    )  # fmt: skip


def learn(
    prior: Profile, true: Profile, n: int, begin: Learned | None = None, noise: tuple[float, ...] = (1.0,)
) -> Learned:
    learned = begin or Learned()
    for i in range(n):
        learned = observe(learned, prior, worked(true, i, noise[i % len(noise)]))
    return learned


NOISE = (1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.985, 1.005, 0.995, 1.01)  # its period differs from that of every mix
COEFFICIENTS = ("a_s", "b_s_per_token", "c_s_per_token2", "d_s", "e_s_per_sequence", "f_s_per_token")


@pytest.mark.parametrize(
    "prior",
    [
        pytest.param(TRUE, id="right"),
        pytest.param(PROFILES["70b-a100-tp4"], id="of another GPU"),
        pytest.param(PROFILES["8b-h100"], id="of another model"),
        pytest.param(
            replace(TRUE, a_s=2 * TRUE.a_s, b_s_per_token=2 * TRUE.b_s_per_token, d_s=TRUE.d_s / 2), id="off by two"
        ),
        pytest.param(replace(TRUE, **{c: 10 * getattr(TRUE, c) for c in COEFFICIENTS}), id="ten times too slow"),
    ],
)
def test_the_truth_is_found_from_any_prior(prior: Profile) -> None:
    found = profile(learn(prior, TRUE, 240, noise=NOISE), prior)
    for tokens, squares in ((4096, 4096 * 800), (1000, 1e6), (8000, 8000 * 2000)):
        assert found.prefill_s(tokens, squares) == pytest.approx(TRUE.prefill_s(tokens, squares), rel=0.05)
    for sequences, kv in ((1, 1000), (32, 32_000), (80, 160_000)):
        assert found.step_s(sequences, kv) == pytest.approx(TRUE.step_s(sequences, kv), rel=0.05)
    assert found.kv_tokens == prior.kv_tokens


def test_one_mix_says_how_fast_and_leaves_the_proportions() -> None:
    prior = replace(
        TRUE, a_s=2 * TRUE.a_s, b_s_per_token=2 * TRUE.b_s_per_token, c_s_per_token2=2 * TRUE.c_s_per_token2
    )
    learned = Learned()
    for _ in range(40):
        learned = observe(learned, prior, worked(TRUE, 3))
    found = profile(learned, prior)
    p = worked(TRUE, 3).prefill
    whole = found.a_s * p.batches + found.b_s_per_token * p.batch_tokens + found.c_s_per_token2 * p.batch_tokens_squared
    assert whole == pytest.approx(p.batch_s, rel=0.01)


def test_a_change_of_the_engine_is_followed_within_hours() -> None:
    faster = replace(TRUE, b_s_per_token=0.6 * TRUE.b_s_per_token, d_s=0.7 * TRUE.d_s)
    found = profile(learn(TRUE, faster, 4 * 240, learn(TRUE, TRUE, 2000)), TRUE)
    assert found.prefill_s(4096, 4096 * 800) == pytest.approx(faster.prefill_s(4096, 4096 * 800), rel=0.1)
    assert found.step_s(32, 32_000) == pytest.approx(faster.step_s(32, 32_000), rel=0.1)


def test_nothing_seen_is_the_prior() -> None:
    assert profile(Learned(), TRUE) == TRUE
    assert factors(Evidence()) == (1.0, 1.0, 1.0)


_number = st.one_of(st.just(math.nan), st.just(0.0), st.floats(0, 1e12), st.just(math.inf))


@settings(max_examples=examples(100))
@given(st.lists(st.lists(_number, min_size=8, max_size=8), max_size=6))
def test_whatever_is_seen_every_term_stays_a_positive_number(rows: list[list[float]]) -> None:
    learned = Learned()
    for v in rows:
        prefill = PrefillSignals(PODS, batches=v[0], batch_tokens=v[1], batch_tokens_squared=v[2], batch_s=v[3])
        decode = DecodeSignals(PODS, steps=v[4], step_sequences=v[5], step_kv_tokens=v[6], step_s=v[7])
        learned = observe(learned, TRUE, Observation(15.0, 15.0, prefill, decode))
    found = profile(learned, TRUE)
    assert all(0 < getattr(found, c) < math.inf for c in COEFFICIENTS)


def test_a_worker_that_is_far_faster_or_slower_than_believed_is_followed_within_bounds() -> None:
    def times(factor: float) -> Profile:
        return replace(TRUE, **{c: factor * getattr(TRUE, c) for c in COEFFICIENTS})

    faster, slower = learn(times(1e5), TRUE, 60), learn(times(1e-5), TRUE, 60)
    assert factors(faster.prefill) == factors(faster.decode) == (0.02,) * 3
    assert max(*factors(slower.prefill), *factors(slower.decode)) == 1000.0


def test_work_beyond_every_number_is_no_evidence() -> None:
    o = worked(TRUE, 0)
    endless = replace(o, prefill=replace(o.prefill, batch_tokens=1e300), decode=replace(o.decode, step_kv_tokens=1e300))
    assert observe(Learned(), TRUE, endless) == Learned()
