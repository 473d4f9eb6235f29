"""Tests of the sizes of pools: they are monotonic in the inputs, and name the limit they exceed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.planning.questions import question, traffic
from tests.profiles import examples

from disagg_operator.performance.hardware import GPUS, NETWORKS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.profile import PROFILES, Profile
from disagg_operator.performance.roof_line import Efficiency, estimate
from disagg_operator.planning.capacity import (
    Infeasible,
    Kv,
    decode_batch,
    decode_pool,
    prefill_pool,
    resized,
    with_tail_in_cache,
)
from disagg_operator.planning.deployment_plan import Deployment, best_disaggregated, best_monolithic, cost_of
from disagg_operator.planning.monolithic import monolithic_pool
from disagg_operator.planning.traffic import LatencyObjectives, Traffic

H100 = GPUS["H100"]
KV = Kv(KNOWN["llama-3.1-70b"], NETWORKS["rdma-400"])
PROFILE = PROFILES["70b-h100-tp4"]
traffics = st.builds(
    lambda rate, mean, ratio, out, out_ratio: traffic(rate, (mean, mean * ratio), (out, out * out_ratio)),
    st.floats(0.05, 500), st.floats(50, 4000), st.floats(1, 8), st.floats(2, 1000), st.floats(1, 8),
)  # fmt: skip
objectives = st.builds(LatencyObjectives, st.floats(0.2, 20), st.floats(0.035, 0.2), st.floats(0.9, 0.999))


def counts(t: Traffic, o: LatencyObjectives, profile: Profile = PROFILE, kv: Kv = KV) -> tuple[float, float, float]:
    """Return the replicas of prefill, of decode and of a single pool; infinite if infeasible."""
    p = prefill_pool(t, o, H100, profile, kv)
    d = decode_pool(t, o, H100, profile, kv, 0.003)
    m = monolithic_pool(t, o, H100, profile)
    return tuple(math.inf if isinstance(x, Infeasible) else x.pool.replicas for x in (p, d, m))  # type: ignore[return-value]


def test_a_pool_whose_steps_cost_the_same_at_any_batch_is_planned() -> None:
    found = counts(traffic(50), LatencyObjectives(1.0, 0.05), replace(PROFILE, e_s_per_sequence=0.0, f_s_per_token=0.0))
    assert all(1 <= n < 100 for n in found)


@given(traffics, objectives, st.floats(1.01, 4))
@settings(max_examples=examples(150))
def test_more_traffic_never_needs_fewer_workers(t: Traffic, o: LatencyObjectives, factor: float) -> None:
    *less, less_together = counts(t, o)
    *more, more_together = counts(t.at(factor * t.requests_per_s), o)
    assert all(a <= b for a, b in zip(less, more, strict=True))
    # With more traffic, a chunk holds more prompts and each delays the streams a little less, which
    # counts where the objective is just missed.
    assert less_together <= 1.05 * more_together + 1


@given(traffics, objectives, st.floats(0.3, 0.99), st.floats(0.3, 0.99))
@settings(max_examples=examples(150))
def test_tighter_objectives_never_need_fewer_workers(
    t: Traffic, o: LatencyObjectives, ttft: float, tpot: float
) -> None:
    loose, tight = counts(t, o), counts(t, replace(o, ttft_s=ttft * o.ttft_s, tpot_s=tpot * o.tpot_s))
    assert all(a <= b for a, b in zip(loose, tight, strict=True))


@given(traffics, objectives, st.floats(0.3, 0.99))
@settings(max_examples=examples(150))
def test_faster_workers_are_never_more(t: Traffic, o: LatencyObjectives, factor: float) -> None:
    p = PROFILE
    fast = replace(
        p, a_s=factor * p.a_s, b_s_per_token=factor * p.b_s_per_token, c_s_per_token2=factor * p.c_s_per_token2,
        d_s=factor * p.d_s, e_s_per_sequence=factor * p.e_s_per_sequence, f_s_per_token=factor * p.f_s_per_token,
    )  # fmt: skip
    slow_p, slow_d, _ = counts(t, o)
    fast_p, fast_d, _ = counts(t, o, fast)
    assert (fast_p, fast_d) <= (slow_p, slow_d)
    assert fast_p <= slow_p
    assert fast_d <= slow_d


@given(traffics, objectives)
@settings(max_examples=examples(150))
def test_what_is_planned_keeps_the_objectives_and_is_not_overloaded(t: Traffic, o: LatencyObjectives) -> None:
    p = prefill_pool(t, o, H100, PROFILE, KV)
    d = decode_pool(t, o, H100, PROFILE, KV, 0.003)
    m = monolithic_pool(t, o, H100, PROFILE)
    for sized, limit in ((p, o.ttft_s), (d, o.tpot_s)):
        if not isinstance(sized, Infeasible):
            assert sized.latency_s <= limit
            assert 0 < sized.pool.utilisation <= 1
    if not isinstance(m, Infeasible):
        assert m.ttft_s <= o.ttft_s
        assert m.tpot_s <= o.tpot_s


def test_a_prompt_that_takes_too_long_alone_is_named() -> None:
    found = prefill_pool(traffic(prompt=(8000, 30_000)), LatencyObjectives(1.0, 0.05), H100, PROFILE, KV)
    assert isinstance(found, Infeasible)
    assert found.limit == "ttft"
    assert "30000 tokens" in found.reason
    assert "1 s is asked" in found.reason


def test_a_step_that_takes_too_long_alone_is_named() -> None:
    found = decode_pool(traffic(), LatencyObjectives(1.0, 0.02), H100, PROFILE, KV, 0.0)
    assert isinstance(found, Infeasible)
    assert found.limit == "tpot"
    assert "29" in found.reason
    assert "20 ms is asked" in found.reason


def test_a_transfer_that_eats_the_time_per_token_is_named() -> None:
    slow = Kv(KNOWN["llama-3.1-70b"], NETWORKS["ethernet-25"])
    short = traffic(output=(4, 10))
    found = decode_pool(short, LatencyObjectives(1.0, 0.05), H100, PROFILE, slow, slow.exposed_s(4000, 0.3))
    assert isinstance(found, Infeasible)
    assert found.limit == "tpot"
    assert "KV over ethernet-25" in found.reason


def test_a_request_larger_than_the_cache_is_named() -> None:
    found = decode_pool(
        traffic(prompt=(1000, 4000)), LatencyObjectives(1.0, 0.05), H100, replace(PROFILE, kv_tokens=1000), KV, 0.0
    )
    assert isinstance(found, Infeasible)
    assert found.limit == "memory"
    assert "1250 tokens" in found.reason


@pytest.mark.parametrize(
    ("change", "bound"), [({}, "tpot"), ({"kv_tokens": 20_000}, "cache"), ({"max_running": 8}, "batch")]
)
def test_what_bounds_a_decode_batch(change: dict[str, int], bound: str) -> None:
    assert decode_batch(traffic(), 0.05, replace(PROFILE, **change))[1] == bound


def test_a_thin_network_makes_pools_larger_and_is_named() -> None:
    wide, thin = (Kv(KNOWN["llama-3.1-70b"], NETWORKS[n]) for n in ("rdma-400", "ethernet-25"))
    o = LatencyObjectives(5.0, 0.1)
    fast, slow = (prefill_pool(traffic(100), o, H100, PROFILE, kv) for kv in (wide, thin))
    assert not isinstance(fast, Infeasible)
    assert not isinstance(slow, Infeasible)
    # 100/s x 1,000 tokens x 327,680 bytes are 262 Gb/s; each interface may carry 16 Gb/s.
    assert slow.pool.replicas == math.ceil(262.144 / (25 * 0.8 * 0.8)) > fast.pool.replicas
    assert slow.pool.bound == "network"


@pytest.mark.parametrize(
    ("network", "tokens", "least_s", "most_s"),
    [("rdma-100", 15_259, 0.4, 0.5), ("nvlink", 1000, 0.0005, 0.002), ("ethernet-25", 1000, 0.02, 0.2)],
)
def test_transfer_times(network: str, tokens: int, least_s: float, most_s: float) -> None:
    """A transfer of 5 GB over 100 Gb/s takes 0.4 s and not 5 ms."""
    assert least_s < Kv(KNOWN["llama-3.1-70b"], NETWORKS[network]).alone_s(tokens) < most_s


@given(st.floats(1, 1e5), st.floats(0, 100))
def test_what_is_exposed_is_at_least_the_last_layer_and_at_most_the_whole(tokens: float, prefill_s: float) -> None:
    whole, exposed = KV.alone_s(tokens), KV.exposed_s(tokens, prefill_s)
    assert KV.network.base_latency_s < exposed <= whole * (1 + 1e-9)
    assert KV.exposed_s(tokens, prefill_s + 1) <= exposed


@given(traffics, st.sampled_from(["A100", "H100", "H200", "MI300X"]), st.floats(1.1, 3))
@settings(max_examples=examples(60))
def test_costs_grow_with_traffic_and_shrink_with_choice(t: Traffic, gpu: str, factor: float) -> None:
    q = question(gpus=gpu, traffic=t, ttft_s=10.0, tpot_s=0.1)
    for best in (best_disaggregated, best_monolithic):
        here = cost_of(best(q))
        assert cost_of(best(replace(q, traffic=t.at(factor * t.requests_per_s)))) >= here
        assert cost_of(best(replace(q, gpus=(*q.gpus, GPUS["B200"])))) <= here


def test_kv_moves_within_one_vendor_only() -> None:
    found = best_disaggregated(question(gpus="H100,MI300X"))
    assert isinstance(found, Deployment)
    assert len({p.gpu.vendor for p in found.pools}) == 1


def test_an_estimate_of_every_gpu_of_a_small_model_plans() -> None:
    for gpu in GPUS.values():
        profile = estimate(KNOWN["llama-3.1-8b"], gpu, 2, Efficiency())
        assert profile is not None
        assert isinstance(best_disaggregated(question("llama-3.1-8b", gpu.name, ttft_s=5.0, tpot_s=0.1)), Deployment)


def test_sequences_that_cost_time_to_take_in_want_more_decode_workers() -> None:
    """With answers of 20 tokens, 20 ms for each sequence add 1 ms to each of its tokens."""
    t, o = traffic(50, (1000, 2000), (20, 40)), LatencyObjectives(1.0, 0.06, 0.95)
    plain, slow = (counts(t, o, replace(PROFILE, take_in_s=s))[1] for s in (0.0, 0.02))
    assert plain < slow < math.inf


def test_a_pool_of_more_than_ten_thousand_replicas_is_not_planned() -> None:
    for found in (
        prefill_pool(traffic(1e6), LatencyObjectives(5.0, 0.1), H100, PROFILE, KV),
        decode_pool(traffic(1e6), LatencyObjectives(5.0, 0.1), H100, PROFILE, KV, 0.003),
    ):
        assert isinstance(found, Infeasible)
        assert "more than 10,000" in found.reason


def test_a_pool_of_another_size_has_the_same_work() -> None:
    found = decode_pool(traffic(100), LatencyObjectives(5.0, 0.1), H100, PROFILE, KV, 0.003)
    assert not isinstance(found, Infeasible)
    other = resized(found.pool, 2 * found.pool.replicas)
    assert (other.replicas, other.bound) == (2 * found.pool.replicas, "simulation")
    assert other.utilisation * other.replicas == pytest.approx(found.pool.utilisation * found.pool.replicas)


@pytest.mark.parametrize(("kv_tokens", "fits"), [(4799, False), (4800, True)])
def test_a_request_of_tail_lengths_fits_into_the_cache_or_not(kv_tokens: int, fits: bool) -> None:
    found = decode_pool(traffic(1), LatencyObjectives(5.0, 0.1), H100, replace(PROFILE, kv_tokens=kv_tokens), KV, 0.0)
    assert not isinstance(found, Infeasible)
    asked = traffic(1)
    assert round(asked.prompt.tail + asked.output.tail) == 4800
    whole = replace(asked, prompt=replace(asked.prompt, tail=4000.0), output=replace(asked.output, tail=800.0))
    assert with_tail_in_cache(found.pool, whole) == fits
