"""The predictive policy: its documented rules, in single steps and in simulated hours."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace

import pytest
from tests.operator.autoscaling.policy.cluster import OUTPUT, PROFILE, PROMPT, RULES, drive, look, steady

from disagg_operator.autoscaling.policy.history import Minute, seed
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals, Targets
from disagg_operator.autoscaling.policy.predictive import Peak, PoolLimits, Settings, State, step


def test_a_steady_load_gets_its_work_and_some_slack_and_then_rests() -> None:
    targets, _ = drive(RULES, lambda _: 40.0, 7200, sizes=(8, 8))
    work = PROFILE.prefill_work_s(40, 40 * PROMPT, 40 * PROMPT**2)
    tokens = 40 * OUTPUT / PROFILE.decode_tokens_per_s(0.97 * 0.06, PROMPT + OUTPUT / 2)
    last = targets[-1]
    assert work < last.prefill <= work + 2.5 * math.sqrt(work)
    assert tokens < last.decode <= tokens + 2.5 * math.sqrt(tokens)
    changes = sum((a.prefill, a.decode) != (b.prefill, b.decode) for a, b in itertools.pairwise(targets[-120:]))
    assert changes <= 2  # in half an hour


def test_the_reason_and_the_numbers_come_along() -> None:
    answer, _ = steady()
    assert "prefill:" in answer.reason
    assert "decode:" in answer.reason
    assert answer.numbers["prefill_forecast"] == pytest.approx(
        PROFILE.prefill_work_s(40, 40 * PROMPT, 40 * PROMPT**2), rel=0.05
    )
    assert {"decode_expected_misses", "prefill_price", "decode_worker_tokens_per_s"} <= answer.numbers.keys()


def test_pools_move_apart_when_prompts_grow_and_answers_shrink() -> None:
    def shift(o: Observation) -> Observation:
        late = o.now_s > 3600
        p, d = (4.0, 0.4) if late else (1.0, 1.0)
        return replace(
            o,
            prefill=replace(
                o.prefill,
                prompt_tokens=o.prefill.prompt_tokens * p,
                prompt_tokens_squared=o.prefill.prompt_tokens_squared * p * p,
            ),
            decode=replace(
                o.decode,
                generated_tokens=o.decode.generated_tokens * d,
                completed_output_tokens=o.decode.completed_output_tokens * d,
                tpot_ok=o.decode.tpot_total,
            ),
        )

    targets, _ = drive(RULES, lambda _: 30.0, 7200, sizes=(6, 6), change=shift)
    before, after = targets[239], targets[-1]
    assert after.prefill > before.prefill
    assert after.decode < before.decode


def test_a_ramp_is_met_before_it_is_there() -> None:
    def ramp(t: float) -> float:
        return 20.0 + max(0.0, t - 3600) * 0.02

    targets, state = drive(RULES, ramp, 3600 + 1200, sizes=(5, 5))
    now = PROFILE.prefill_work_s(ramp(4800), ramp(4800) * PROMPT, ramp(4800) * PROMPT**2)
    assert targets[-1].numbers["prefill_forecast"] > 1.03 * now
    assert targets[-1].prefill > now
    assert state.prefill.demand.trends[0] > 0


def test_a_backlog_and_blocked_decode_count_where_they_wait() -> None:
    calm, state = steady()
    p, d = (Pods(n, n, cold_start_s=120.0) for n in (calm.prefill, calm.decode))
    queued, _ = step(RULES, look(3615, 40.0, p, d, waiting_tokens=400_000), state)
    blocked, _ = step(RULES, look(3615, 40.0, p, d, decode_waiting=600), state)
    assert queued.prefill > calm.prefill
    assert queued.decode == calm.decode
    assert blocked.decode > calm.decode
    assert blocked.prefill == calm.prefill


def test_prompts_that_wait_because_decode_is_full_want_decode_workers() -> None:
    calm, state = steady()
    p, d = (Pods(n, n, cold_start_s=120.0) for n in (calm.prefill, calm.decode))
    seen = look(3615, 40.0, p, d, waiting_tokens=400_000)
    held, _ = step(RULES, replace(seen, prefill=replace(seen.prefill, batch_share=0.125)), state)
    free, _ = step(RULES, replace(seen, prefill=replace(seen.prefill, batch_share=1.0)), state)
    assert (held.decode > calm.decode, free.decode) == (True, calm.decode)
    assert calm.prefill <= held.prefill < free.prefill


def test_pods_that_start_are_capacity() -> None:
    calm, state = steady()
    p = Pods(calm.prefill, calm.prefill - 3, (90.0, 60.0, 30.0), cold_start_s=120.0)
    answer, _ = step(RULES, look(3615, 40.0, p, Pods(calm.decode, calm.decode, cold_start_s=120.0)), state)
    assert answer.prefill == calm.prefill


def test_pods_that_can_not_be_placed_are_asked_for_once_and_held() -> None:
    calm, state = steady()
    d = Pods(calm.decode, calm.decode, cold_start_s=120.0)
    young = Pods(calm.prefill + 3, calm.prefill, (500.0,) * 3, cold_start_s=120.0)
    waiting, _ = step(RULES, look(3615, 140.0, young, d, waiting_tokens=1e6), state)
    assert waiting.prefill > calm.prefill + 3
    for stuck in (replace(young, starting_ages_s=(700.0,) * 3), replace(young, unplaced_s=(15.0,) * 3)):
        held, after = step(RULES, look(3615, 140.0, stuck, d, waiting_tokens=1e6), state)
        assert held.prefill + held.decode <= stuck.replicas + d.replicas
        assert held.prefill in (calm.prefill - 1, stuck.replicas)
        assert "can't be placed" in held.reason
        assert "of work are expected" in held.unmet["prefill"]
        # There is no room for more: one worker of each pool finds out whether that has changed.
        p = Pods(calm.prefill, calm.prefill, cold_start_s=120.0)
        again, after = step(RULES, look(3630, 140.0, p, d, waiting_tokens=1e6), after)
        assert (again.prefill, again.decode) == (calm.prefill + 1, calm.decode + 1)
        later, _ = step(RULES, look(4230, 140.0, p, d, waiting_tokens=1e6), after)
        assert later.prefill > calm.prefill + 1


def test_a_pool_whose_signals_are_missing_holds_and_the_other_moves_on() -> None:
    calm, state = steady()
    p, d = (Pods(n, n, cold_start_s=120.0) for n in (calm.prefill, calm.decode))
    for now in range(3615, 4200, 15):
        o = look(now, 5.0, p, d)
        answer, state = step(RULES, replace(o, decode=DecodeSignals(d)), state)
    assert answer.decode == calm.decode
    assert "generated tokens are not known" in answer.reason
    assert answer.prefill < calm.prefill
    after, state = step(RULES, look(4215, 40.0, p, d), state)
    assert math.isfinite(after.numbers["decode_forecast"])  # no trace of the gap is left
    o = look(4230, 40.0, p, d)
    odd, state = step(RULES, replace(o, prefill=replace(o.prefill, prompt_tokens=math.inf)), state)
    assert "prompt lengths are not known" in odd.reason


def test_nodes_are_asked_for_ten_minutes_ahead_and_workers_held_for_what_comes_then() -> None:
    def day(t: float) -> float:
        return 30.0 + 25.0 * math.sin(2 * math.pi * t / 7200.0)

    targets, _ = drive(RULES, lambda t: 20.0 + max(0.0, t - 3600) * 0.03, 4800, sizes=(5, 5))
    assert targets[-1].numbers["prefill_in_ten_minutes"] >= targets[-1].prefill
    targets, _ = drive(RULES, day, 7200, sizes=(6, 6))
    numbers = [t.numbers for t in targets]
    assert all(n["prefill_in_ten_minutes"] >= 1 and n["decode_in_ten_minutes"] >= 1 for n in numbers)


def test_a_wrong_profile_is_corrected_and_what_is_remembered_with_it() -> None:
    names = ("a_s", "b_s_per_token", "c_s_per_token2", "d_s", "e_s_per_sequence", "f_s_per_token")
    wrong = replace(RULES, profile=replace(PROFILE, **{name: getattr(PROFILE, name) / 2 for name in names}))

    def computed(o: Observation) -> Observation:
        n, batches, made, steps = (
            o.prefill.arrivals,
            o.prefill.arrivals / 3,
            o.decode.generated_tokens,
            300.0 * o.decode.pods.ready,
        )
        kv = made * (PROMPT + OUTPUT / 2)
        return replace(
            o,
            prefill=replace(
                o.prefill, batches=batches, batch_tokens=n * PROMPT, batch_tokens_squared=n * PROMPT**2,
                batch_s=PROFILE.a_s * batches + PROFILE.b_s_per_token * n * PROMPT
                + PROFILE.c_s_per_token2 * n * PROMPT**2,
            ),
            decode=replace(
                o.decode, steps=steps, step_sequences=made, step_kv_tokens=kv,
                step_s=PROFILE.d_s * steps + PROFILE.e_s_per_sequence * made + PROFILE.f_s_per_token * kv,
            ),
        )  # fmt: skip

    right, _ = drive(RULES, lambda _: 40.0, 3600, sizes=(8, 8), change=computed)
    found, _ = drive(wrong, lambda _: 40.0, 3600, sizes=(8, 8), change=computed)
    for name in ("prefill_demand", "decode_demand", "decode_worker_tokens_per_s"):
        assert found[-1].numbers[name] == pytest.approx(right[-1].numbers[name], rel=0.05)
    assert (found[-1].prefill, found[-1].decode) == (right[-1].prefill, right[-1].decode)


def test_down_only_after_the_last_cold_starts_saw_no_need() -> None:
    calm, state = steady()
    down, _ = drive(RULES, lambda _: 8.0, 900, state, (calm.prefill, calm.decode), 3600)
    first = next(i for i, t in enumerate(down) if t.prefill < calm.prefill)
    assert 15 * (first + 1) >= 180  # 1.5 cold starts of 120 s
    assert down[-1].prefill < calm.prefill / 2


def test_not_below_the_starting_size_while_nothing_is_known() -> None:
    targets, _ = drive(RULES, lambda _: 1.0, 900, sizes=(7, 9))
    early = targets[: 600 // 15 - 1]
    assert all(t.prefill >= 7 and t.decode >= 9 for t in early)
    assert targets[-1].prefill < 7


def blind(o: Observation) -> Observation:
    return replace(o, prefill=PrefillSignals(o.prefill.pods), decode=DecodeSignals(o.decode.pods))


def test_without_metrics_nothing_shrinks_and_the_usual_ramp_is_met() -> None:
    def day(t: float) -> float:
        return 30.0 + 20.0 * math.sin(2 * math.pi * t / 86_400)

    minutes = [
        Minute(t * 60.0, 60 * day(t * 60.0), 60 * day(t * 60.0) * PROMPT, 60 * day(t * 60.0) * OUTPUT)
        for t in range(-4320, 0)
    ]
    targets, state = drive(RULES, day, 3600, seed(RULES, minutes), (7, 7))
    sizes = (targets[-1].prefill, targets[-1].decode)
    held, state = drive(RULES, day, 7200, state, sizes, 3600, change=blind)
    assert all(t.prefill >= sizes[0] and t.decode >= sizes[1] for t in held)
    assert "no metrics" in held[0].reason
    assert held[10].prefill == sizes[0]
    assert held[-1].prefill > sizes[0]  # the morning ramp of the previous days
    empty, _ = drive(RULES, day, 900, None, sizes, 0, change=blind)
    assert {(t.prefill, t.decode) for t in empty} == {sizes}


def test_a_long_blindness_on_a_ramp_rises_once_and_within_the_budget() -> None:
    def office(t: float) -> float:
        return 10.0 + 60.0 * min(1.0, max(0.0, t % 86_400 - 9 * 3600) / 1800)

    minutes = [
        Minute(t * 60.0, 60 * office(t * 60.0), 60 * office(t * 60.0) * PROMPT, 60 * office(t * 60.0) * OUTPUT)
        for t in range(-4320, 0)
    ]
    begin_s = 8.7 * 3600
    held = {}
    for name, rules in (
        ("free", RULES),
        ("budget", replace(RULES, gpu_budget=16)),
        ("ratio", replace(RULES, ratio=(0.5, 1.0))),
    ):
        seen, state = drive(rules, office, 1200, seed(rules, minutes), (4, 4), begin_s)
        had = seen[-1]
        later, _ = drive(rules, office, 3600, state, (had.prefill, had.decode), begin_s + 1200, change=blind)
        assert later[-1].prefill <= 2 * had.prefill  # and not twice as much in every tick
        assert later[-1].decode <= 2 * had.decode
        assert all(b.prefill >= a.prefill and b.decode >= a.decode for a, b in itertools.pairwise([had, *later]))
        held[name] = later[-1]
        rose = later[-1].prefill + later[-1].decode > had.prefill + had.decode
        assert rose == (name != "budget")
    assert 4 * (held["budget"].prefill + held["budget"].decode) <= 16
    assert 0.5 * held["ratio"].prefill <= held["ratio"].decode <= held["ratio"].prefill


def test_without_metrics_a_ratio_moves_nobody() -> None:
    rules = replace(RULES, ratio=(8.0, 9.0))
    targets, _ = drive(rules, lambda _: 10.0, 900, None, (1, 1), 0, change=blind)
    assert {(t.prefill, t.decode) for t in targets} == {(1, 1)}


def test_bounds_ratio_budget_and_peaks_hold() -> None:
    tight = replace(RULES, prefill=PoolLimits(2, 3, 4), decode=PoolLimits(5, 6, 4))
    targets, _ = drive(tight, lambda t: 60.0 if t > 600 else 1.0, 2400, sizes=(3, 5))
    assert all(2 <= t.prefill <= 3 and 5 <= t.decode <= 6 for t in targets)
    both = replace(RULES, ratio=(1.0, 1.5), gpu_budget=40)
    targets, _ = drive(both, lambda _: 120.0, 1800, sizes=(4, 4))
    assert all(t.prefill <= t.decode <= 1.5 * t.prefill and 4 * (t.prefill + t.decode) <= 40 for t in targets[2:])
    assert "ratio and GPU budget" in targets[-1].reason
    ratio = replace(RULES, ratio=(1.0, 1.5))
    targets, _ = drive(ratio, lambda _: 40.0, 1800, sizes=(6, 6))
    assert all(t.prefill <= t.decode <= 1.5 * t.prefill for t in targets[45:])
    budget = replace(RULES, gpu_budget=32)
    targets, _ = drive(budget, lambda _: 80.0, 1800, sizes=(4, 4))
    assert all(4 * (t.prefill + t.decode) <= 32 for t in targets)
    assert "GPUs" in targets[-1].reason
    peak = replace(RULES, peaks=(Peak(7200, 7500, prefill=20, decode=11),))
    targets, _ = drive(peak, lambda _: 10.0, 9000, sizes=(3, 3))
    inside = [t for i, t in enumerate(targets) if 7200 <= 15 * (i + 1) < 7500]
    assert all(t.prefill >= 20 and t.decode >= 11 for t in inside)
    assert targets[(7200 - 150) // 15 - 1].prefill >= 20  # a cold start before the peak
    assert targets[(7200 - 300) // 15 - 1].prefill < 20
    assert targets[-1].prefill < 20


def test_a_schedule_asks_each_pool_for_its_own_workers_where_both_have_the_same_bounds() -> None:
    bounds = PoolLimits(1, 40)
    rules = replace(RULES, prefill=bounds, decode=bounds, peaks=(Peak(0, 86_399, prefill=20, decode=11),))
    targets, _ = drive(rules, lambda _: 1.0, 300, sizes=(3, 3))
    assert (targets[-1].prefill, targets[-1].decode) == (20, 11)


def test_over_provisioning_multiplies_the_work() -> None:
    plain, _ = steady()
    double, _ = steady(rules=replace(RULES, over_provisioning=2.0))
    assert 1.6 * plain.prefill <= double.prefill <= 2.5 * plain.prefill


def test_workers_change_sides_only_where_that_is_faster() -> None:
    p, d = Pods(10, 10, cold_start_s=120.0), Pods(3, 3, cold_start_s=120.0)
    _, state = drive(RULES, lambda _: 20.0, 3600, sizes=(10, 3))

    def after(rules: Settings) -> Targets:
        return step(rules, look(3615, 20.0, p, d, decode_waiting=400), state)[0]

    assert after(RULES).flip == 0
    assert after(replace(RULES, role_flip_s=5.0)).flip > 0
    assert after(replace(RULES, role_flip_s=500.0)).flip == 0


def test_what_a_pool_holds_beyond_its_need_goes_to_the_other_where_that_is_fast() -> None:
    p, d = Pods(10, 10, cold_start_s=120.0), Pods(3, 3, cold_start_s=120.0)
    _, state = drive(RULES, lambda _: 20.0, 3600, sizes=(10, 3))
    # A moment ago prefill needed all ten workers, so it keeps them for a while.
    state = replace(state, prefill=replace(state.prefill, wanted=((3590.0, 10),)))
    slow = step(RULES, look(3615, 20.0, p, d, decode_waiting=400), state)[0]
    assert slow.prefill == 10
    assert slow.flip == 0
    fast = step(replace(RULES, role_flip_s=5.0), look(3615, 20.0, p, d, decode_waiting=400), state)[0]
    assert fast.decode == slow.decode > 3
    assert fast.flip == 10 - fast.prefill > 0
    assert "decode has more use for" in fast.reason
    # No pool wants more: the reserve stays.
    calm = step(replace(RULES, role_flip_s=5.0), look(3615, 20.0, p, Pods(20, 20, cold_start_s=120.0)), state)[0]
    assert (calm.prefill, calm.flip) == (10, 0)


@pytest.mark.parametrize("interval_s", [0.0, -5.0, math.nan])
def test_an_interval_of_no_time_says_nothing(interval_s: float) -> None:
    _, state = steady()
    o = replace(look(3615, 40.0, Pods(8, 8), Pods(8, 8)), interval_s=interval_s)
    answer, after = step(RULES, o, state)
    assert (answer.prefill, answer.decode) == (8, 8)
    assert after == state


def test_a_policy_that_shall_not_learn_keeps_the_profile_that_it_was_given() -> None:
    halved = replace(PROFILE, b_s_per_token=PROFILE.b_s_per_token / 2, d_s=PROFILE.d_s / 2)
    known = replace(RULES, profile=halved, learn=False)
    targets, state = drive(known, lambda _: 40.0, 900, sizes=(8, 8))
    assert state.learned == State().learned
    assert targets[-1].numbers["prefill_forecast"] < 0.7 * PROFILE.prefill_work_s(40, 40 * PROMPT, 40 * PROMPT**2)


def test_objectives_that_are_not_counted_teach_nothing_of_misses() -> None:
    def uncounted(o: Observation) -> Observation:
        return replace(o, prefill=replace(o.prefill, ttft_total=math.nan), decode=replace(o.decode, tpot_ok=math.nan))

    _, state = drive(RULES, lambda _: 40.0, 600, sizes=(8, 8), change=uncounted)
    for pool, fresh in ((state.prefill, State().prefill), (state.decode, State().decode)):
        assert (pool.curve, pool.missed, pool.counted) == (fresh.curve, 0.0, 0.0)
        assert pool.load > 0


def test_without_requests_nothing_is_missed() -> None:
    busy, state = drive(RULES, lambda _: 40.0, 600, sizes=(8, 8))
    _, after = drive(RULES, lambda _: 0.0, 15, state, (busy[-1].prefill, busy[-1].decode), begin_s=600)
    assert after.prefill.missed <= state.prefill.missed
    assert after.prefill.counted < state.prefill.counted


_NO_SIGNALS = {"pods"}


@pytest.mark.parametrize(
    ("pool", "name"),
    [
        *(("prefill", f.name) for f in fields(PrefillSignals) if f.name not in _NO_SIGNALS),
        *(("decode", f.name) for f in fields(DecodeSignals) if f.name not in _NO_SIGNALS),
    ],
)
def test_a_signal_that_an_engine_cannot_have_is_not_known_and_breaks_nothing(pool: str, name: str) -> None:
    def unknown(o: Observation) -> Observation:
        return replace(o, **{pool: replace(getattr(o, pool), **{name: math.nan})})

    before, state = drive(RULES, lambda _: 40.0, 300, sizes=(8, 8))
    sizes = (before[-1].prefill, before[-1].decode)
    targets, state = drive(RULES, lambda _: 40.0, 300, state, sizes, begin_s=300, change=unknown)
    for found in targets:
        assert min(found.prefill, found.decode) >= 8
        assert max(found.prefill, found.decode) <= 12
        assert not any(math.isinf(n) for n in found.numbers.values())
    for pool_state in (state.prefill, state.decode):
        known = (pool_state.demand.level, pool_state.missed, pool_state.counted)
        assert all(math.isfinite(n) for n in known)


def test_the_rests_of_prompts_that_decode_computes_are_its_work_and_not_that_of_prefill() -> None:
    def chats(o: Observation) -> Observation:
        tokens = 30_000.0 * o.interval_s  # Long prompts: each has a batch of its own.
        p = replace(o.prefill, prompt_tokens=tokens, prompt_tokens_squared=tokens, to_decode=0.75 * o.prefill.arrivals)
        return replace(o, prefill=p, decode=replace(o.decode, rest_s=2.0 * o.interval_s))

    def all_shipped(o: Observation) -> Observation:
        o = chats(o)
        return replace(o, prefill=replace(o.prefill, to_decode=0.0), decode=replace(o.decode, rest_s=0.0))

    (mine, _), (shipped, _) = (drive(RULES, lambda _: 4.0, 900, sizes=(8, 8), change=c) for c in (chats, all_shipped))
    work = [m[-1].numbers for m in (mine, shipped)]
    assert work[0]["decode_demand"] == pytest.approx(work[1]["decode_demand"] + 2, rel=0.02)
    assert work[0]["prefill_demand"] < work[1]["prefill_demand"]
