"""Tests of the profiles of models with experts: the curve, its tangent, memory and plans."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.planning.questions import question, traffic
from tests.profiles import examples

from disagg_operator.performance.expert_profile import ExpertProfile
from disagg_operator.performance.hardware import GPUS
from disagg_operator.performance.model_shape import KNOWN, Experts, ModelShape
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.roof_line import Efficiency, estimate, estimates
from disagg_operator.planning import monolithic, report
from disagg_operator.planning.capacity import Infeasible, decode_batch, decode_pool, prefill_pool
from disagg_operator.planning.deployment_plan import (
    Deployment,
    Question,
    best_disaggregated,
    best_monolithic,
    make_plan,
)
from disagg_operator.planning.traffic import LatencyObjectives, Traffic

mixtures = st.integers(1, 512).flatmap(
    lambda count: st.builds(
        Experts, st.integers(1, 60), st.just(count), st.integers(1, count), st.sampled_from([768, 2048, 14336])
    )
)
MODELS = [name for name, shape in KNOWN.items() if shape.experts]


# ---- the experts that a batch uses ----


@given(mixtures, st.floats(1, 1e5), st.floats(1, 1e5))
def test_a_batch_touches_between_those_of_one_token_and_all_and_more_tokens_touch_more(
    e: Experts, one: float, other: float
) -> None:
    few, many = sorted((one, other))
    assert e.per_token * (1 - 1e-9) <= e.touched(few) <= e.touched(many) * (1 + 1e-12) <= e.count * (1 + 1e-9)
    assert e.touched(1) == pytest.approx(e.per_token)


def test_deepseek_touches_half_of_its_experts_with_22_tokens() -> None:
    e = KNOWN["deepseek-v3"].experts
    assert e is not None
    assert [round(100 * e.touched(n) / e.count) for n in (1, 4, 22, 73, 233)] == [3, 12, 50, 90, 100]


# ---- a mixture of one expert is the dense model ----


@given(
    st.sampled_from(["llama-3.1-8b", "qwen3-32b", "mistral-7b"]),
    st.sampled_from(list(GPUS)),
    st.sampled_from([1, 2, 4]),
)
@settings(max_examples=examples(60))
def test_one_expert_of_the_same_width_is_the_dense_model(name: str, gpu: str, tensor: int) -> None:
    dense = KNOWN[name]
    mixed = replace(dense, experts=Experts(dense.layers, 1, 1, dense.intermediate))
    for figure in ("parameters", "active_parameters", "weight_bytes", "kv_bytes_per_token", "pair_flops"):
        assert getattr(mixed, figure) == getattr(dense, figure)
    # Choosing a single expert costs nothing here, and its matrices are as fast as others.
    even = replace(Efficiency(), experts_flops=Efficiency().prefill_flops, experts_overhead_s=0.0)
    found, plain = estimate(mixed, GPUS[gpu], tensor, even), estimate(dense, GPUS[gpu], tensor, even)
    assert (found is None) == (plain is None)
    if found is not None and plain is not None:
        assert found.step_s(7, 7000) == pytest.approx(plain.step_s(7, 7000), rel=1e-9)
        assert found.isolated_s(700) == pytest.approx(plain.isolated_s(700), rel=1e-9)
        assert found.kv_tokens == plain.kv_tokens


# ---- the curve and its tangent ----

profiles = st.builds(
    lambda d, e, f, routed, share, at, ranks: ExpertProfile(
        8, 0.01, 2e-5, 1e-10, d + routed, e, f, 500_000, routed_s=routed, share=share, weights_s=d,
        matrix_s_per_token=1.5e-5, ranks=ranks, own_s_per_token=5e-6,
    ).around(at),
    st.floats(1e-4, 0.05), st.floats(1e-6, 1e-3), st.floats(1e-10, 1e-6), st.floats(1e-4, 0.1), st.floats(0.001, 0.9),
    st.floats(1, 600), st.sampled_from([1, 2, 8]),
)  # fmt: skip


@given(profiles, st.floats(1, 2000), st.floats(1, 2000), st.floats(0, 8000))
def test_a_step_never_falls_with_the_batch_or_what_it_holds(
    p: ExpertProfile, one: float, other: float, held: float
) -> None:
    few, many = sorted((one, other))
    assert p.step_s(few, few * held) <= p.step_s(many, many * held) * (1 + 1e-9)
    assert p.step_s(few, 0) <= p.step_s(few, held)


@given(profiles, st.floats(0, 2000), st.floats(1, 600))
def test_the_curve_does_not_depend_on_where_its_tangent_is(p: ExpertProfile, sequences: float, at: float) -> None:
    assert p.around(at).step_s(sequences, 1000) == pytest.approx(p.step_s(sequences, 1000), rel=1e-6, abs=1e-9)


@given(profiles, st.floats(1, 2000))
def test_the_straight_line_is_right_where_it_touches_and_nowhere_too_fast(p: ExpertProfile, sequences: float) -> None:
    assert Profile.step_s(p, p.tangent, 0) == pytest.approx(p.step_s(p.tangent, 0), rel=1e-6)
    assert Profile.step_s(p, sequences, 0) >= p.step_s(sequences, 0) * (1 - 1e-9)
    assert p.fit_error(sequences, 0) >= -1e-9


@given(profiles, st.floats(1.001, 20), st.floats(0, 4000))
def test_what_fits_into_a_time_takes_that_time(p: ExpertProfile, factor: float, held: float) -> None:
    asked_s = factor * p.step_s(1, held)
    n = p.sequences_within(asked_s, held)
    assert n >= 1
    assert p.step_s(n, n * held) == pytest.approx(asked_s, rel=1e-6)
    assert p.sequences_within(0.5 * p.step_s(1, held), held) < 1


@given(profiles, st.floats(1, 30_000), st.floats(1, 3))
def test_a_prompt_takes_no_less_than_reading_its_weights_and_a_longer_one_no_less(
    p: ExpertProfile, tokens: float, factor: float
) -> None:
    assert p.isolated_s(tokens) >= p.prefill_s(tokens, tokens * tokens)
    assert p.isolated_s(tokens) >= p.weights_s + p.routed_s * (1 - (1 - p.share) ** tokens)
    assert p.isolated_s(tokens) <= p.isolated_s(factor * tokens) * (1 + 1e-12)
    full = p.full_tokens
    assert p.isolated_s(full) == pytest.approx(p.prefill_s(full, full * full) + p.lone_s(full, full * full))
    assert (p.lone_s(tokens, tokens * tokens) > 0) == (p.ranks > 1)


def test_a_profile_that_is_straight_is_its_own_tangent() -> None:
    p = estimate(KNOWN["llama-3.1-8b"], GPUS["H100"], 1, Efficiency())
    assert p is not None
    assert (p.around(17), p.unread_s(3), p.full_tokens, p.lone_s(9, 81), p.request_tokens) == (
        p,
        0.0,
        0.0,
        0.0,
        p.kv_tokens,
    )


# ---- memory ----


def test_the_latent_cache_is_on_every_gpu() -> None:
    """More GPUs hold hardly more tokens, because a latent cache is not divided like KV heads."""
    model = KNOWN["deepseek-v2-lite"]
    one, eight = estimate(model, GPUS["H200"], 1, Efficiency()), estimate(model, GPUS["H200"], 8, Efficiency())
    assert one is not None
    assert eight is not None
    free = 0.9 * 141e9 - 1.5e9
    assert one.kv_tokens == pytest.approx((free - model.weight_bytes) / model.kv_bytes_per_token, rel=1e-6)
    assert eight.kv_tokens == pytest.approx((free - model.weight_bytes / 8) / model.kv_bytes_per_token, rel=1e-6)
    assert eight.f_s_per_token >= model.kv_bytes_per_token / (4.8e12 * 0.8)  # each GPU reads all of it


def test_one_gpu_multiplies_by_a_latent_cache_longer_than_it_reads_it() -> None:
    model = KNOWN["deepseek-v2-lite"]
    one = estimate(model, GPUS["H100"], 1, replace(Efficiency(), attention_flops=0.05))
    assert one is not None
    assert one.f_s_per_token == pytest.approx(model.decode_pair_flops / (989e12 * 0.05))


def test_spread_experts_leave_each_gpu_the_other_weights_and_a_cache_of_its_own() -> None:
    """DeepSeek-V3 on 8 H200 has 100 GB of weights on each GPU, which leaves 40 GB for the cache.

    Perplexity reports these figures for experts 8, data 8 (perplexity.ai/hub/blog: lower latency
    and higher throughput with multi-node DeepSeek deployment; a talk by L. Chen of May 2025).
    """
    model = KNOWN["deepseek-v3"]
    whole, spread = (estimate(model, GPUS["H200"], 8, Efficiency(), 1024.0, s) for s in (False, True))
    assert isinstance(whole, ExpertProfile)
    assert isinstance(spread, ExpertProfile)
    assert (model.routed_bytes / 8 + model.weight_bytes - model.routed_bytes) / 1e9 == pytest.approx(100, rel=0.01)
    assert 4.5 * whole.kv_tokens < spread.kv_tokens < 8 * whole.kv_tokens
    assert spread.request_tokens == spread.kv_tokens / 8 < whole.request_tokens
    # A step of one sequence reads all other weights on one GPU, and a prompt alone has one GPU to
    # multiply by them. The latent caches of many long sequences are read only once.
    assert spread.step_s(1, 1000) > 1.5 * whole.step_s(1, 1000)
    assert spread.isolated_s(8000) > 1.5 * whole.isolated_s(8000)
    assert spread.step_s(64, 64 * 8000) < whole.step_s(64, 64 * 8000)
    assert (spread.b_s_per_token, spread.c_s_per_token2) == (whole.b_s_per_token, whole.c_s_per_token2)


def test_a_request_larger_than_one_gpus_cache_is_not_planned_on_spread_experts() -> None:
    q = question("deepseek-v3", "H200")
    spread = estimate(q.model, GPUS["H200"], 8, Efficiency(), 1024.0, True)
    assert spread is not None
    long = traffic(1.0, (0.9 * spread.request_tokens, 1.5 * spread.request_tokens), (0.2 * spread.request_tokens,) * 2)
    found = decode_pool(long, LatencyObjectives(1e4, 10.0), GPUS["H200"], spread, q.kv, 0.0)
    assert isinstance(found, Infeasible)
    assert f"does not fit in the cache of {spread.request_tokens:.0f} tokens" in found.reason


def test_long_contexts_are_decoded_by_spread_experts_and_a_few_short_ones_by_tensor_parallelism() -> None:
    long = best_disaggregated(question("deepseek-v3", "H200", ttft_s=20.0, traffic=traffic(5, (20_000, 60_000))))
    few = best_disaggregated(question("deepseek-v3", "H200", traffic=traffic(0.5)))
    assert isinstance(long, Deployment)
    assert isinstance(few, Deployment)
    assert [report.parallelism(p) for p in (*long.pools, *few.pools)] == [
        "tensor 8",
        "experts 8",
        "tensor 8",
        "tensor 8",
    ]


@pytest.mark.parametrize(
    ("model", "gpu", "tensors"),
    [
        ("deepseek-v3", "H200", [8]), ("deepseek-v3", "H100", []), ("deepseek-v3", "B200", [8]),
        ("deepseek-v3", "MI300X", [8]), ("kimi-k2", "H200", []), ("kimi-k2-thinking", "H200", [8]),
        ("gpt-oss-120b", "H100", [1, 2, 4, 8]), ("gpt-oss-20b", "A10G", [1, 2, 4]), ("mixtral-8x7b", "H100", [2, 4, 8]),
        ("qwen3-235b-a22b", "H100", [8]), ("qwen3-235b-a22b", "H200", [4, 8]),
    ],
)  # fmt: skip
def test_what_fits_a_node(model: str, gpu: str, tensors: list[int]) -> None:
    assert [
        p.gpus for p in estimates(KNOWN[model], GPUS[gpu], Efficiency()) if p.request_tokens == p.kv_tokens
    ] == tensors


# ---- plans ----


def test_the_batch_of_a_plan_is_where_the_curve_reaches_the_objective() -> None:
    q = question("deepseek-v3", "H200")
    plan = best_disaggregated(q)
    assert isinstance(plan, Deployment)
    decode = plan.pools[1]
    assert isinstance(decode.profile, ExpertProfile)
    assert decode.profile.tangent == decode.batch
    held = q.traffic.held_tokens
    assert (
        decode.profile.step_s(decode.batch, decode.batch * held)
        <= 0.05
        < decode.profile.step_s(1.2 * decode.batch, 1.2 * decode.batch * held)
    )
    # Code that only knows the straight line gets the same batch.
    straight = Profile(**{f: getattr(decode.profile, f) for f in Profile.__dataclass_fields__})
    assert decode_batch(q.traffic, 0.05, straight)[0] == pytest.approx(
        decode_batch(q.traffic, 0.05, decode.profile)[0], rel=0.02
    )


@given(st.sampled_from(["gpt-oss-120b", "deepseek-v3", "qwen3-30b-a3b"]), st.floats(0.05, 60), st.integers(1, 40))
@settings(max_examples=examples(80))
def test_one_pools_steps_solve_their_own_equation(name: str, rate: float, replicas: int) -> None:
    """The mean step reads the experts that its own streams use, and is delayed by chunks."""
    q = question(name, "H200", traffic=traffic(rate))
    p = q.options()[-1][1]
    share = q.traffic.at(rate / replicas)
    found = monolithic._steady(p, share, 2048)
    if found is not None:
        streams = share.output_tokens_per_s * found.mean_s
        straight = p.around(streams)  # the curve is not used below one stream
        per_stream_s = straight.e_s_per_sequence + straight.f_s_per_token * share.held_tokens
        prompts = share.prompt_tokens_per_s * found.mean_s  # the tokens that arrive during a step
        attention_s = p.c_s_per_token2 * share.prompt.second_moment / share.prompt.mean * prompts
        chunks_s = p.chunk_s(found.chunk, max(1.0, streams), share.prompt.mean) * prompts / found.chunk
        computed_s = straight.d_s + per_stream_s * streams + attention_s + chunks_s
        assert found.mean_s == pytest.approx(computed_s, rel=1e-4)


traffics = st.builds(
    lambda rate, mean, out: traffic(rate, (mean, 3 * mean), (out, 3 * out)),
    st.floats(0.05, 200),
    st.floats(50, 4000),
    st.floats(2, 1000),
)
goals = st.builds(LatencyObjectives, st.floats(0.2, 20), st.floats(0.01, 0.2), st.floats(0.9, 0.999))


def counts(q: Question) -> tuple[float, ...]:
    """Return the replicas of prefill, of decode and of a single pool; infinite if infeasible."""
    gpu, p = q.options()[-1]
    found = (
        prefill_pool(q.traffic, q.objectives, gpu, p, q.kv), decode_pool(q.traffic, q.objectives, gpu, p, q.kv, 0.003),
        monolithic.monolithic_pool(q.traffic, q.objectives, gpu, p),
    )  # fmt: skip
    return tuple(math.inf if isinstance(f, Infeasible) else f.pool.replicas for f in found)


@given(st.sampled_from(["gpt-oss-120b", "deepseek-v3"]), traffics, goals, st.floats(1.01, 4), st.floats(0.3, 0.99))
@settings(max_examples=examples(80))
def test_more_traffic_or_less_time_never_needs_fewer_workers(
    name: str, t: Traffic, o: LatencyObjectives, factor: float, part: float
) -> None:
    q = replace(question(name, "H200", traffic=t), objectives=o)
    here = counts(q)
    assert all(a <= b for a, b in zip(here, counts(replace(q, traffic=t.at(factor * t.requests_per_s))), strict=True))
    tight = replace(o, ttft_s=part * o.ttft_s, tpot_s=part * o.tpot_s)
    assert all(a <= b for a, b in zip(here, counts(replace(q, objectives=tight)), strict=True))


@pytest.mark.parametrize("model", [m for m in MODELS if m not in ("kimi-k2", "glm-4.5", "glm-4.6")])
def test_every_known_model_is_planned(model: str) -> None:
    q = question(model, "B200", ttft_s=5.0, tpot_s=0.1, traffic=traffic(5))
    for best in (best_disaggregated(q), best_monolithic(q)):
        assert isinstance(best, Deployment)
        assert best.tpot_s <= 0.1
        assert all(0 < p.utilisation <= 1 for p in best.pools)


def test_what_is_assumed_is_told() -> None:
    plan = make_plan(question("deepseek-v3", "H200", traffic=traffic(20)))
    notes = "\n".join(report.notes(plan))
    for words in (
        "over several nodes is not planned",
        "holds the latent cache of all",
        "another engine",
        "% of the experts",
        "% too slow at",
    ):
        assert words in notes
    rows = dict(report.question_rows(plan))
    assert rows["weights"] == "672 GB, 671B parameters, 36.6B of them for a token"
    assert "latent KV of 512 + 64, 8 of 256 experts and a shared one in 58 layers, 8-bit weights" in rows["model"]
    plain = "\n".join(report.notes(make_plan(question(traffic=traffic(20)))))
    assert "xpert" not in plain
    windowed = dict(report.question_rows(make_plan(question("gpt-oss-120b", traffic=traffic(20)))))
    assert windowed["KV cache"].startswith("73,728 bytes a token, 36,864 once more than 128 later ones came")
    assert "16-bit weights (4.25 bits in experts)" in windowed["model"]


def test_a_model_that_fits_no_node_is_told_so() -> None:
    notes = report.notes(make_plan(question("kimi-k2", "H200")))
    assert (
        "disaggregated is infeasible: memory: 1028 GB of weights and a cache fit no replica of one node of H200."
        in notes
    )


def test_shapes_without_experts_have_no_curve() -> None:
    latent: ModelShape = replace(KNOWN["deepseek-v2-lite"], experts=None)
    assert type(estimate(latent, GPUS["H100"], 1, Efficiency())) is Profile
