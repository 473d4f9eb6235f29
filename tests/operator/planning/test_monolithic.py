"""One pool keeps both objectives with the fewest replicas, or says why it can't."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.planning.questions import estimated, traffic

from disagg_operator.performance.hardware import GPUS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.profile import PROFILES, Profile
from disagg_operator.performance.roof_line import EFFICIENCIES, estimate
from disagg_operator.planning.capacity import Infeasible
from disagg_operator.planning.monolithic import CHUNKS_TOKENS, Together, _steady, mean_load, mixed, monolithic_pool
from disagg_operator.planning.traffic import LatencyObjectives, Traffic

PROFILE = PROFILES["70b-h100-tp4"]
LOOSE = LatencyObjectives(5.0, 0.1)


def pool(t: Traffic, objectives: LatencyObjectives = LOOSE, profile: Profile = PROFILE) -> Together | Infeasible:
    return monolithic_pool(t, objectives, GPUS["H100"], profile)


@given(st.floats(0.1, 300), st.floats(1.0, 10), st.floats(0.06, 0.3))
def test_a_pool_keeps_the_objectives_and_no_smaller_one_does_at_any_chunk(
    rate: float, ttft_s: float, tpot_s: float
) -> None:
    t, objectives = traffic(rate), LatencyObjectives(ttft_s, tpot_s)
    found = pool(t, objectives)
    if isinstance(found, Infeasible):
        assert found.limit in ("ttft", "tpot")
        return
    n = found.pool.replicas
    at = mixed(t, objectives, PROFILE, found.chunk_tokens, n)
    assert at is not None
    assert (at.ttft_s, at.tpot_s) == (found.ttft_s, found.tpot_s)
    assert found.ttft_s <= ttft_s
    assert found.tpot_s <= tpot_s
    assert found.pool.batch <= PROFILE.max_running
    for chunk_tokens in CHUNKS_TOKENS if n > 1 else ():
        fewer = mixed(t, objectives, PROFILE, chunk_tokens, n - 1)
        assert fewer is None or fewer.ttft_s > ttft_s or fewer.tpot_s > tpot_s or fewer.streams > PROFILE.max_running


def test_an_overloaded_replica_has_no_steady_state() -> None:
    assert mixed(traffic(1000), LOOSE, PROFILE, 512, 1) is None


@given(st.floats(1, 100), st.sampled_from(CHUNKS_TOKENS))
def test_more_replicas_have_less_to_do(rate: float, chunk_tokens: int) -> None:
    fewer, more = (mixed(traffic(rate), LOOSE, PROFILE, chunk_tokens, n) for n in (20, 40))
    if fewer is None:
        return
    assert more is not None
    assert more.streams <= fewer.streams
    assert more.ttft_s <= fewer.ttft_s + 1e-9


def test_a_curve_of_experts_is_followed_to_where_the_pool_runs() -> None:
    profile = estimated("deepseek-v3")
    found = pool(traffic(20), LatencyObjectives(10.0, 0.2), profile)
    assert isinstance(found, Together)
    at = mixed(traffic(20), LatencyObjectives(10.0, 0.2), profile, found.chunk_tokens, found.pool.replicas)
    assert at is not None
    assert found.pool.profile == profile.around(at.streams)


SHORT = traffic(1000, output=(20, 60))


@pytest.mark.parametrize(
    ("asked", "objectives", "profile", "limit", "words"),
    [
        (traffic(), LOOSE, replace(PROFILE, kv_tokens=1000), "memory", "1250 tokens does not fit"),
        (traffic(), LatencyObjectives(0.05, 1.0), PROFILE, "ttft", "4000 prompt tokens take 0.39 s"),
        (traffic(), LatencyObjectives(5.0, 0.02), PROFILE, "tpot", "a token takes 29.2 ms"),
        (SHORT, LatencyObjectives(2.0, 0.0305), PROFILE, "tpot", "no chunk size"),
    ],
)  # fmt: skip
def test_the_objective_that_can_not_be_kept_is_named(
    asked: Traffic, objectives: LatencyObjectives, profile: Profile, limit: str, words: str
) -> None:
    found = pool(asked, objectives, profile)
    assert isinstance(found, Infeasible)
    assert found.limit == limit
    assert words in found.reason


@dataclass(frozen=True)
class Restless(Profile):
    """Steps are long beside few sequences and short beside many, so that nothing is steady."""

    def around(self, sequences: float) -> Restless:
        return replace(self, d_s=0.02 if sequences > 100 else 0.2)


def test_the_search_for_a_steady_state_ends_where_there_is_none() -> None:
    profile = Restless(4, 0.01, 1e-5, 0.0, 0.1, 1e-5, 0.0, 450_000)
    found = mixed(traffic(3), LOOSE, profile, 2048, 1)
    assert found is not None
    assert 0 < found.tpot_s < 1


def test_a_chunk_that_is_computed_while_the_weights_are_read_delays_nobody() -> None:
    """A step takes as long as the longer of reading the weights and computing the chunk."""
    p = replace(PROFILE, c_s_per_token2=0.0, kv_tokens=10**9, max_running=10**6)
    flat = traffic(2.0, prompt=(1000, 1000), output=(200, 200))
    hidden = replace(p, a_s=1e-3, b_s_per_token=0.5 * p.d_s / 1000)
    alone = mixed(flat, LOOSE, replace(hidden, b_s_per_token=1e-9), 2048, 1)
    beside = mixed(flat, LOOSE, hidden, 2048, 1)
    slower = mixed(flat, LOOSE, replace(hidden, b_s_per_token=4 * p.d_s / 1000), 2048, 1)
    assert alone is not None
    assert beside is not None
    assert slower is not None
    assert beside.tpot_s == pytest.approx(alone.tpot_s)
    assert slower.tpot_s > 1.1 * beside.tpot_s


def test_every_step_computes_what_arrives_where_a_chunk_holds_several_prompts() -> None:
    """Beyond one prompt a step, the step is as long as computing what arrives during it takes."""
    p = replace(PROFILE, c_s_per_token2=0.0, f_s_per_token=0.0, kv_tokens=10**9, max_running=10**6)
    rate = 20.0
    found = _steady(p, traffic(rate, prompt=(500, 500), output=(50, 50)), 8192)
    assert found is not None
    assert found.chunk == pytest.approx(rate * 500 * found.mean_s)
    computing_s = p.a_s + p.b_s_per_token * found.chunk
    assert found.chunk > 500
    assert found.mean_s == pytest.approx(max(p.d_s, computing_s) + p.e_s_per_sequence * rate * 50 * found.mean_s)


def test_gpus_that_compute_their_own_prompts_wait_for_the_one_that_has_one() -> None:
    p = replace(estimated("deepseek-v3"), ranks=8, own_s_per_token=1e-6)
    even = replace(p, ranks=1)
    for tokens, waiting in ((500.0, 7 * 500), (1000.0, 7 * 1000), (4000.0, 4000), (8000.0, 0)):
        waited_s = p.chunk_s(tokens, 32, 1000.0) - even.chunk_s(tokens, 32, 1000.0)
        assert waited_s == pytest.approx(waiting * (1e-6 + p.c_s_per_token2 * 1000.0))


@given(st.floats(1, 300), st.sampled_from(CHUNKS_TOKENS), st.integers(1, 60))
def test_the_mean_load_needs_no_more_replicas_than_there_are(rate: float, chunk_tokens: int, replicas: int) -> None:
    t = traffic(rate)
    needed = mean_load(t, LOOSE, PROFILE, chunk_tokens, replicas)
    assert 0 < needed <= replicas
    found = _steady(PROFILE, t.at(rate / needed), chunk_tokens)
    if needed < replicas:
        assert found is not None
        assert found.mean_s <= LOOSE.tpot_s


@given(st.floats(1.0, 60.0), st.sampled_from(CHUNKS_TOKENS), st.floats(0.0, 200e-9))
def test_a_steady_step_takes_as_long_as_its_streams_and_its_chunk(
    rate: float, chunk_tokens: int, square: float
) -> None:
    """The step is a curve of the streams, and the streams are those that come during a step."""
    roof = estimate(KNOWN["llama-3.1-70b"], GPUS["H100"], 4, EFFICIENCIES["tuned"])
    assert roof is not None
    p = replace(roof, h_s_per_sequence2=square)
    share = traffic(rate / 20)
    found = _steady(p, share, chunk_tokens)
    if found is None or found.mean_s > 0.1:  # near saturation the search ends before it is exact
        return
    streams = share.output_tokens_per_s * found.mean_s
    prompts = share.prompt_tokens_per_s * found.mean_s
    attention_s = p.c_s_per_token2 * share.prompt.second_moment / share.prompt.mean * prompts
    chunk_s = p.chunk_s(found.chunk, streams, share.prompt.mean) * prompts / found.chunk
    assert p.step_s(streams, streams * share.held_tokens) + attention_s + chunk_s == pytest.approx(
        found.mean_s, rel=0.01
    )
