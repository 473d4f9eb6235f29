"""The policies that others ship, by their documented formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals
from disagg_operator.performance.profile import PROFILES
from disagg_operator.simulation.baselines import Apa, Dynamo, HeteroScale, Hpa, HpaBehavior, Kpa, Wva, all_of

PROFILE = PROFILES["70b-h100-tp4"]


def look(
    now_s: float,
    flying: float,
    pods: Pods,
    *,
    busy: float = 0.5,
    kv: float = 0.1,
    made: float = 500.0,
) -> Observation:
    """Return the same requests in flight in each pool.

    Each pod is `busy` for a share of the time, uses a share `kv` of its memory, and has `made` so
    many tokens per second.
    """
    prefill = PrefillSignals(
        pods,
        arrivals=100.0,
        prompt_tokens=80_000.0,
        prompt_tokens_squared=9e7,
        waiting_requests=flying,
        waiting_tokens=0.0,
        running_requests=0.0,
        busy_s=busy * 15.0 * pods.ready,
    )
    decode = DecodeSignals(
        pods,
        waiting_requests=0.0,
        running_requests=flying,
        kv_tokens=kv * 450_000.0 * pods.ready,
        kv_capacity_tokens=450_000.0,
        generated_tokens=made * 15.0 * pods.ready,
        completions=100.0,
        completed_output_tokens=20_000.0,
        completed_context_tokens=100_000.0,
    )
    return Observation(now_s, 15.0, prefill, decode)


@pytest.mark.parametrize(
    ("pods", "flying", "prefill"),
    [
        pytest.param(Pods(4, 4), 12, 6, id="ceil of pods times ratio"),
        pytest.param(Pods(4, 4), 8.7, 4, id="within the tolerance"),
        pytest.param(Pods(4, 4), 40, 8, id="at most double or four more"),
        pytest.param(Pods(1, 1), 40, 5, id="at least four more"),
        pytest.param(Pods(8, 4), 12, 8, id="pods that start count nothing on the way up: the other direction holds"),
        pytest.param(Pods(8, 4), 40, 16, id="and dampen it"),
        pytest.param(Pods(4, 0), 40, 4, id="no pod, no metric"),
    ],
)
def test_hpa_on_a_metric_of_the_pods(pods: Pods, flying: float, prefill: int) -> None:
    assert Hpa(2, 1000)(look(0, flying, pods)).prefill == prefill


def test_keda_knows_no_pods() -> None:
    assert Hpa(2, 1000, "external")(look(0, 30, Pods(8, 4))).prefill == 15
    assert Hpa(2, 1000, "external")(look(0, 17, Pods(8, 8))).prefill == 8  # within 10 %


def test_hpa_goes_down_to_the_largest_of_five_minutes() -> None:
    behavior = HpaBehavior()
    assert behavior.decide(0, 8, 6) == 6  # a fresh controller knows only this
    assert behavior.decide(100, 8, 3) == 6
    assert behavior.decide(301, 8, 3) == 3
    slow = HpaBehavior(300.0, up_window_s=60.0)
    assert slow.decide(0, 4, 4) == 4
    assert slow.decide(30, 4, 8) == 4
    assert slow.decide(61, 4, 8) == 8


def test_knative_panics_at_twice_and_waits_before_it_shrinks() -> None:
    kpa = Kpa(2, 1000, delay_s=120.0, utilisation=1.0)
    assert kpa(look(0, 8, Pods(4, 4))).prefill == 4
    assert kpa(look(15, 40, Pods(4, 4))).prefill == 20  # by the last scrape alone
    assert kpa(look(30, 8, Pods(20, 20))).prefill == 20  # never down in panic
    assert kpa(look(240, 8, Pods(20, 20))).prefill == 10  # half of what is ready
    assert kpa(look(600, 8, Pods(6, 6))).prefill == 4


def test_knative_aims_at_seventy_percent_of_the_concurrency() -> None:
    answer = Kpa(2, 80)(look(0, 56, Pods(30, 30)))
    assert (answer.prefill, answer.decode) == (40, 15)  # 56 / 1.4; half of what is ready
    assert Kpa(2, 80)(look(0, 70, Pods(1, 1))).decode == 2  # 70 / 56


def test_a_panic_keeps_what_it_asked_for_not_what_there_is() -> None:
    kpa = Kpa(2, 1000, delay_s=0.0, utilisation=1.0)
    assert kpa(look(0, 20, Pods(12, 5))).prefill == 10
    assert kpa(look(15, 20, Pods(12, 5))).prefill == 10  # not the 12 there are
    assert kpa(look(30, 8, Pods(10, 10))).prefill == 10


def test_apa_moves_by_a_factor_of_two_outside_of_its_band() -> None:
    assert Apa(2, 1000)(look(0, 40, Pods(4, 4))).prefill == 8
    assert Apa(2, 1000)(look(0, 8.7, Pods(4, 4))).prefill == 4
    assert Apa(2, 1000)(look(0, 7, Pods(4, 4))).prefill == 4
    assert Apa(2, 1000)(look(0, 5, Pods(8, 8))).prefill == 4  # half at most
    assert Apa(2, 1000)(look(0, 16, Pods(8, 4, (20.0,) * 4))).prefill == 8  # what starts is counted
    assert Apa(2, 1000)(look(0, 20, Pods(8, 4, (20.0,) * 4))).prefill == 10  # too many for all


def test_apa_sees_a_burst_at_the_next_scrape_and_shrinks_after_its_cool_down() -> None:
    apa = Apa(2, 1000)
    assert [apa(look(15.0 * i, 8, Pods(4, 4))).prefill for i in range(4)] == [4] * 4
    assert apa(look(60, 14, Pods(4, 4))).prefill == 7
    assert apa(look(75, 2, Pods(7, 7))).prefill == 7
    assert apa(look(359, 2, Pods(7, 7))).prefill == 7
    assert apa(look(374, 2, Pods(7, 7))).prefill == 3


def test_dynamo_plans_an_interval_at_full_utilisation() -> None:
    policy = Dynamo(PROFILE, 0.060)
    answers = [policy(look(15.0 * i, 5, Pods(3, 3))) for i in range(1, 14)]
    assert {(a.prefill, a.decode) for a in answers[:-1]} == {(3, 3)}
    rate = 100 / 15
    assert answers[-1].prefill == math.ceil(rate * PROFILE.isolated_s(800.0))
    assert answers[-1].decode == math.ceil(rate * 200 / PROFILE.decode_tokens_per_s(0.060, 800 + 100))
    assert Dynamo(PROFILE, 0.060, 2.0).margin == 2.0


def test_dynamo_has_prefill_enough_for_its_ttft() -> None:
    policy = Dynamo(PROFILE, 0.060)
    for i in range(1, 14):
        o = look(15.0 * i, 5, Pods(3, 3))
        answer = policy(replace(o, prefill=replace(o.prefill, arrivals=1.0, prompt_tokens=20_000.0)))
    # By its rate, a fifteenth of a prompt a second, one worker would do.
    assert answer.prefill == math.ceil(PROFILE.isolated_s(20_000.0) / 0.5) == 9


def test_wva_moves_by_one_when_nothing_starts() -> None:
    def answers(pods: Pods, *, busy: float, kv: float = 0.01, waiting: float = 0.0) -> int:
        o = look(0, 5, pods, busy=busy, kv=kv)
        return Wva(0.7, 0.13)(replace(o, prefill=replace(o.prefill, waiting_requests=waiting))).prefill

    assert answers(Pods(4, 4), busy=0.65) == 5
    assert answers(Pods(5, 4), busy=0.65) == 5
    assert answers(Pods(4, 4), busy=0.3) == 3
    assert answers(Pods(4, 4), busy=0.5) == 4  # the others could not take it
    assert answers(Pods(4, 4), busy=0.3, waiting=9) == 5  # more than two wait for each
    assert answers(Pods(4, 4), busy=0.3, waiting=7) == 4  # as they would with one less
    assert answers(Pods(1, 1), busy=0.0) == 1


def test_wva_looks_at_the_worst_of_a_minute_every_thirty_seconds() -> None:
    wva = Wva(0.7, 0.13)
    calm = [Pods(4, 4), Pods(5, 5)]
    assert wva(look(0, 5, calm[0], busy=0.5, kv=0.01)).prefill == 4
    assert wva(look(15, 5, calm[0], busy=0.68, kv=0.01)).prefill == 4  # between two looks
    assert wva(look(30, 5, calm[0], busy=0.5, kv=0.01)).prefill == 5  # still of this minute
    assert wva(look(45, 5, calm[1], busy=0.3, kv=0.01)).prefill == 5
    assert wva(look(330, 5, calm[1], busy=0.3, kv=0.01)).prefill == 5  # a default HPA stands behind
    assert wva(look(645, 5, calm[1], busy=0.3, kv=0.01)).prefill == 4


def test_wva_behind_a_slow_hpa_waits_both_ways() -> None:
    wva = Wva(0.7, 0.13, 240.0)
    times = {0: 0.5, 120: 0.68, 239: 0.68, 270: 0.68}
    said = [wva(look(at, 5, Pods(4, 4), busy=busy, kv=0.01)).prefill for at, busy in times.items()]
    assert said == [4, 4, 4, 5]


def test_heteroscale_keeps_a_ratio() -> None:
    target = 0.5 * PROFILE.decode_tokens_per_s(0.060, 1000.0)
    answer = HeteroScale(PROFILE, 0.060)(look(1000, 5, Pods(4, 4), made=1.45 * target))
    assert answer.decode == 6
    assert answer.prefill == math.ceil(6 * 2.4)


@pytest.mark.parametrize("name", all_of(PROFILE, 0.060))
def test_without_metrics_none_of_them_moves(name: str) -> None:
    o = look(0, 5, Pods(4, 4))
    blind = replace(o, prefill=PrefillSignals(o.prefill.pods), decode=DecodeSignals(o.decode.pods))
    answer = all_of(PROFILE, 0.060)[name](blind)
    assert (answer.prefill, answer.decode) == (4, 4)


def test_hpa_on_utilisation_goes_by_the_busy_time_of_prefill_and_the_cache_of_decode() -> None:
    hpa = Hpa(0.5, 0.25, "utilisation")
    answer = hpa(look(0.0, 0, Pods(4, 4), busy=0.75, kv=0.5))
    assert (answer.prefill, answer.decode) == (6, 8)


def test_dynamo_follows_a_rate_that_rises() -> None:
    policy = Dynamo(PROFILE, 0.060)
    sizes = []
    for i in range(1, 40):
        o, factor = look(15.0 * i, 5, Pods(3, 3)), 1 + 30 * (i // 14)
        p, d = o.prefill, o.decode
        grown = replace(p, arrivals=factor * p.arrivals, prompt_tokens=factor * p.prompt_tokens)
        ended = replace(d, completions=factor * d.completions, completed_output_tokens=factor * 20_000.0)
        sizes.append(policy(replace(o, prefill=grown, decode=ended)).prefill)
    assert sizes[12] < sizes[25] < sizes[-1]
    assert sizes[12:] == sorted(sizes[12:])


def test_heteroscale_stays_within_its_band_and_shrinks_after_its_cool_down() -> None:
    target = 0.5 * PROFILE.decode_tokens_per_s(0.060, 1000.0)
    policy = HeteroScale(PROFILE, 0.060)
    assert policy(look(0.0, 5, Pods(4, 4), made=target)).decode == 4
    assert policy(look(15.0, 5, Pods(4, 4), made=1.45 * target)).decode == 6
    assert policy(look(30.0, 5, Pods(6, 6), made=0.5 * target)).decode == 6
    assert policy(look(316.0, 5, Pods(6, 6), made=0.5 * target)).decode == 3


def test_heteroscale_keeps_the_context_that_it_knows_while_nothing_ends() -> None:
    policy = HeteroScale(PROFILE, 0.060)
    o = look(0.0, 5, Pods(4, 4))
    policy(replace(o, decode=replace(o.decode, completions=0.0, completed_context_tokens=0.0)))
    assert policy.context_tokens == 1000.0
