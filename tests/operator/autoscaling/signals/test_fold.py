"""Samples of pods become signals: differences for each pod are summed, and silence is unknown."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.policy.observation import Folded, Pods
from disagg_operator.autoscaling.signals.fold import MAX_GAP_S, Look, Memory, fold
from disagg_operator.autoscaling.signals.samples import Sample

ARRIVALS = "disagg_router_arrivals_total"
TOKENS = "disagg_router_arrived_prompt_tokens_total"
GENERATED = "disagg_worker_generated_tokens_total"
RUNNING = "disagg_worker_running_requests"
PARTS = ("prompt", "uncached")


def router(at_s: float, arrivals: float, **more: float) -> Sample:
    values = {
        ARRIVALS: arrivals,
        TOKENS: 10 * arrivals,
        "disagg_router_arrived_prompt_tokens_squared_total": 100 * arrivals,
    }
    values |= {f"disagg_router_waiting_requests:{pool}": 0.0 for pool in ("prefill", "decode")}
    return Sample(at_s, values | {k.replace("__", ":"): v for k, v in more.items()})


def worker(at_s: float, generated: float = 0.0, running: float = 0.0, **more: float) -> Sample:
    return Sample(at_s, {GENERATED: generated, RUNNING: running, "disagg_worker_waiting_requests": 0.0, **more})


def look(at_s: float, routers: Any = None, prefill: Any = None, decode: Any = None) -> Look:
    return Look(
        at_s, routers or {}, prefill or {}, decode or {}, Pods(1, len(prefill or {})), Pods(1, len(decode or {}))
    )


def after(*looks: Look) -> Folded:
    memory = Memory()
    for one in looks:
        folded, memory = fold(one, memory)
    return folded


def test_counters_are_known_from_the_second_look_on_and_gauges_from_the_first() -> None:
    first = after(look(100, {"r": router(100, 40)}, decode={"d": worker(100, 7, 3)}))
    assert first.observation.blind
    assert math.isnan(first.observation.decode.generated_tokens)
    assert first.observation.decode.running_requests == 3
    assert not first.partial
    second = after(
        look(100, {"r": router(100, 40)}, decode={"d": worker(100, 7, 3)}),
        look(105, {"r": router(105, 60)}, decode={"d": worker(105, 57, 4)}),
    )
    o = second.observation
    assert (o.interval_s, o.prefill.arrivals, o.prefill.prompt_tokens, o.prefill.prompt_tokens_squared) == (
        5,
        20,
        200,
        2000,
    )
    assert o.decode.generated_tokens == 50


@pytest.mark.parametrize(
    ("workers", "share"),
    [
        pytest.param([(256, 2048), (1024, 2048)], 0.3125, id="held back by decode"),
        pytest.param([(2048, 2048)], 1.0, id="decode has room"),
        pytest.param([], math.nan, id="nobody says"),
    ],
)
def test_how_far_prefill_is_held_back(workers: list[tuple[float, float]], share: float) -> None:
    names = ("disagg_prefill_batch_limit_tokens", "disagg_prefill_batch_most_tokens")
    prefill = {str(i): worker(100, **dict(zip(names, w, strict=True))) for i, w in enumerate(workers)} or {
        "0": worker(100)
    }
    assert after(look(100, {"r": router(100, 1)}, prefill)).observation.prefill.batch_share == pytest.approx(
        share, nan_ok=True
    )


@pytest.mark.parametrize(
    ("before", "now", "arrivals"),
    [
        pytest.param({"r": 10}, {"r": 4}, 4, id="a process that began anew counts from zero"),
        pytest.param(
            {"r": 10}, {"r": 12, "s": 500}, 2 * 2 / 2, id="what a new pod counted before is not of this interval"
        ),
        pytest.param({"r": 10, "s": 10}, {"r": 12}, 2, id="a pod that is gone takes nothing away"),
        pytest.param({"r": 10, "s": 10}, {"r": 14, "s": None}, 8, id="one of two is silent: the other speaks for it"),
        pytest.param({"r": 10}, {"r": None}, math.nan, id="all are silent"),
        pytest.param({"r": 10}, {}, math.nan, id="there is no router"),
    ],
)
def test_arrivals(before: dict[str, float], now: dict[str, float | None], arrivals: float) -> None:
    first = look(100, {pod: router(100, n) for pod, n in before.items()})
    second = look(105, {pod: None if n is None else router(105, n) for pod, n in now.items()})
    found = after(first, second).observation.prefill.arrivals
    assert found == arrivals or (math.isnan(found) and math.isnan(arrivals))


def test_a_pool_of_which_one_pod_is_silent_is_partial_and_its_gauges_are_scaled() -> None:
    workers = {"a": worker(105, 0, 6), "b": None, "c": worker(105, 0, 2)}
    folded = after(
        look(100, {"r": router(100, 1)}, decode=dict.fromkeys(workers, worker(100))),
        look(105, {"r": router(105, 1)}, decode=workers),
    )
    assert folded.partial == {"decode"}
    assert folded.observation.decode.running_requests == 12
    silent = after(look(100, {"r": router(100, 1)}, decode={"a": None}))
    assert math.isnan(silent.observation.decode.running_requests)


def test_an_empty_pool_has_nothing_running() -> None:
    folded = after(look(100, {"r": router(100, 1)}), look(105, {"r": router(105, 1)}))
    assert folded.observation.decode.running_requests == 0
    assert folded.observation.decode.generated_tokens == 0
    assert not folded.partial


def test_a_silent_router_forbids_scaling_down_either_pool() -> None:
    assert after(look(100, {"r": router(100, 1), "s": None})).partial == {"prefill", "decode"}


def test_after_a_silence_a_counter_gives_its_rate_and_not_all_of_it() -> None:
    folded = after(
        look(100, {"r": router(100, 0), "s": router(100, 0)}),
        look(105, {"r": router(105, 5), "s": None}),
        look(110, {"r": router(110, 10), "s": None}),
        look(115, {"r": router(115, 15), "s": router(115, 15)}),
    )
    assert folded.observation.prefill.arrivals == pytest.approx(10)


def test_after_a_hole_counters_begin_anew() -> None:
    gap = look(100 + MAX_GAP_S + 1, {"r": router(100 + MAX_GAP_S + 1, 5000)})
    folded = after(look(95, {"r": router(95, 0)}), look(100, {"r": router(100, 0)}), gap)
    assert folded.observation.blind


def test_uncached_tokens_follow_what_was_cached_lately() -> None:
    def said(at_s: float, arrivals: float) -> Sample:
        return router(
            at_s, arrivals, disagg_router_prefilled_tokens_total__prompt=10 * arrivals,
            disagg_router_prefilled_tokens_total__uncached=4 * arrivals,
            disagg_router_prefilled_tokens_squared_total__prompt=100 * arrivals,
            disagg_router_prefilled_tokens_squared_total__uncached=16 * arrivals,
        )  # fmt: skip

    p = after(look(100, {"r": said(100, 0)}), look(105, {"r": said(105, 10)})).observation.prefill
    assert (p.prompt_tokens, p.prompt_tokens_squared) == pytest.approx((40, 160))


def test_prompts_that_decode_prefills_by_choice_are_no_requests_of_prefill() -> None:
    def said(at_s: float, arrivals: float, **more: float) -> Sample:
        tokens = {f"disagg_router_prefilled_tokens{s}_total__{p}": arrivals for s in ("", "_squared") for p in PARTS}
        return router(at_s, arrivals, **tokens, **more)

    parts = [{f"disagg_router_prefilled_requests_total__{p}": n for p, n in zip(PARTS, c, strict=True)}
             for c in ((0.0, 0.0), (10.0, 4.0))]  # fmt: skip
    p = after(
        look(100, {"r": said(100, 0, **parts[0])}), look(105, {"r": said(105, 10, **parts[1])})
    ).observation.prefill
    assert (p.arrivals, p.to_decode) == pytest.approx((10, 6))
    older = after(look(100, {"r": said(100, 0)}), look(105, {"r": said(105, 10)})).observation.prefill
    assert (older.arrivals, older.to_decode) == (10, 0)


@pytest.mark.parametrize(
    ("sources", "seconds"),
    [({"local_rest": 30, "local_compute": 10}, 1.5), ({"local_rest": 30}, 0), ({"local_compute": 10}, 0), ({}, 0)],
)
def test_the_rests_that_decode_computes_are_timed_apart_from_what_it_repeats(
    sources: dict[str, float], seconds: float
) -> None:
    def said(at_s: float, grown: float) -> Sample:
        counted = {f"disagg_worker_prompt_tokens_by_source_total:{s}": grown * n for s, n in sources.items()}
        return worker(at_s, disagg_worker_prefill_batch_seconds_total=2 * grown, **counted)

    looks = [look(t, {"r": router(t, 0)}, decode={"d": said(t, n)}) for t, n in ((100, 0.0), (105, 1.0))]
    assert after(*looks).observation.decode.rest_s == pytest.approx(seconds)


def test_a_workers_speed_is_learned_from_those_that_are_a_minute_old() -> None:
    def batches(at_s: float, n: float) -> Sample:
        names = ("batches", "batch_tokens", "batch_tokens_squared", "batch_seconds")
        return worker(at_s, **{f"disagg_worker_prefill_{name}_total": n for name in names})

    routers = {"r": router(0, 0)}
    looks = [look(t, routers, prefill={"old": batches(t, t)}) for t in (0, 40, 80)]
    looks += [look(t, routers, prefill={"old": batches(t, t), "new": batches(t, 100 * t)}) for t in (85, 90)]
    p = after(*looks).observation.prefill
    assert (p.batches, p.batch_tokens, p.batch_s) == (5, 5, 5)


def test_objectives_and_queues_of_routers() -> None:
    def said(at_s: float, ok: float, missed: float) -> Sample:
        return router(
            at_s, 0, disagg_router_objective_requests_total__ttft__true=ok,
            disagg_router_objective_requests_total__ttft__false=missed,
            disagg_router_waiting_requests__decode=6,
        )  # fmt: skip

    o = after(look(100, {"r": said(100, 5, 0)}), look(105, {"r": said(105, 8, 1)})).observation
    assert (o.prefill.ttft_total, o.prefill.ttft_ok) == (4, 3)
    assert math.isnan(o.decode.tpot_total)  # the router does not count it
    assert o.decode.waiting_requests == 6


@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.lists(st.one_of(st.none(), st.floats(0, 1e6)), min_size=2, max_size=2)),
        min_size=1,
        max_size=8,
    )
)
def test_no_history_gives_a_negative_signal(history: list[tuple[float, list[float | None]]]) -> None:
    memory, at_s = Memory(), 0.0
    for step_s, counts in history:
        at_s += step_s
        routers = {f"r{i}": None if n is None else router(at_s, n) for i, n in enumerate(counts)}
        folded, memory = fold(look(at_s, routers), memory)
        p = folded.observation.prefill
        assert math.isnan(p.arrivals) or 0 <= p.arrivals <= 2e6
        assert folded.observation.blind == math.isnan(p.arrivals)


NAN = math.nan


@pytest.mark.parametrize(
    ("before", "now", "generated"),
    [
        pytest.param({"a": 10, "b": NAN}, {"a": 30, "b": NAN}, 40, id="one cannot know: the other speaks for it"),
        pytest.param({"a": NAN}, {"a": NAN}, NAN, id="nobody can know"),
        pytest.param({"a": NAN}, {"a": 5000}, NAN, id="what it counted while it did not know is of no interval"),
        pytest.param({"a": 10, "b": NAN}, {"a": 30, "b": 9000}, 40, id="nor does it add to a sum"),
        pytest.param({"a": 10}, {"a": NAN}, NAN, id="it does not know any more"),
    ],
)
def test_a_counter_that_an_engine_cannot_have_is_unknown_and_no_zero(
    before: dict[str, float], now: dict[str, float], generated: float
) -> None:
    looks = [
        look(at_s, {"r": router(at_s, 1)}, decode={pod: worker(at_s, n) for pod, n in counts.items()})
        for at_s, counts in ((100.0, before), (105.0, now))
    ]
    assert after(*looks).observation.decode.generated_tokens == pytest.approx(generated, nan_ok=True)


def test_a_gauge_that_one_worker_cannot_have_is_that_of_the_others() -> None:
    decode = {"a": worker(100, running=3), "b": worker(100, running=NAN)}
    folded = after(look(100, {"r": router(100, 1)}, decode=decode))
    assert folded.observation.decode.running_requests == 6
    alone = after(look(100, {"r": router(100, 1)}, decode={"b": worker(100, running=NAN)}))
    assert math.isnan(alone.observation.decode.running_requests)


@pytest.mark.parametrize(
    ("waiting", "tokens", "known"),
    [
        pytest.param(4.0, 7.0, 7.0 + 20.0, id="the engine knows its tokens"),
        pytest.param(4.0, NAN, 40.0 + 20.0, id="it knows its requests: each has the mean tokens"),
        pytest.param(NAN, NAN, NAN, id="it knows neither"),
    ],
)
def test_tokens_that_wait_are_estimated_where_only_requests_are_known(
    waiting: float, tokens: float, known: float
) -> None:
    more = {"disagg_worker_waiting_requests": waiting, "disagg_worker_waiting_tokens": tokens}
    looks = [
        look(
            at_s,
            {"r": router(at_s, n, disagg_router_waiting_requests__prefill=2.0)},
            {"p": worker(at_s, **more)},
        )
        for at_s, n in ((100.0, 10), (105.0, 20))
    ]
    assert after(*looks).observation.prefill.waiting_tokens == pytest.approx(known, nan_ok=True)
