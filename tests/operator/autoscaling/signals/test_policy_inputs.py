"""One look at the pods becomes what the policies go by, and says what of it is new."""

from __future__ import annotations

import math

import pytest

from disagg_operator.autoscaling.policy.observation import Pods
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.signals.fold import Look, Memory
from disagg_operator.autoscaling.signals.policy_inputs import Seen, observe
from disagg_operator.autoscaling.signals.samples import Sample


def router(at_s: float, arrivals: float = 0.0, waiting: float = 0.0) -> Sample:
    values = {"disagg_router_arrivals_total": arrivals}
    values |= {f"disagg_router_waiting_requests:{pool}": waiting for pool in ("prefill", "decode")}
    return Sample(at_s, values)


def worker(at_s: float, waiting: float, running: float) -> Sample:
    return Sample(at_s, {"disagg_worker_waiting_requests": waiting, "disagg_worker_running_requests": running})


def look(now_s: float, routers: dict[str, Sample | None], **pods: Sample | None) -> Look:
    """Return a look at prefill workers named p..., decode workers named d... ."""
    prefill, decode = ({name: s for name, s in pods.items() if name[0] == letter} for letter in "pd")
    return Look(now_s, routers, prefill, decode, Pods(1, len(prefill)), Pods(1, len(decode)))


def test_what_waits_and_runs_in_a_pool_is_its_queue() -> None:
    seen = observe(
        look(10.0, {"r": router(10.0, waiting=3.0)}, p=worker(10.0, 1.0, 2.0), d=None), Memory(), polled=False
    )
    assert seen.samples["prefill"] == QueueSample(10.0, 6.0, 0, False)
    assert seen.samples["decode"] == QueueSample(10.0, None, 1, False)
    assert (seen.folded.observation.now_s, seen.counters.at_s) == (10.0, 10.0)


def test_a_silent_router_is_told() -> None:
    seen = observe(look(10.0, {"r": None}, p=worker(10.0, 1.0, 2.0)), Memory(), polled=False)
    assert seen.samples["prefill"] == QueueSample(10.0, 3.0, 0, True)


def after(first: Look, second: Look) -> Seen:
    return observe(second, observe(first, Memory(), polled=True).counters, polled=True)


def test_counters_say_something_from_the_second_look_on() -> None:
    first = observe(look(10.0, {"r": router(10.0, 5)}), Memory(), polled=False)
    assert (first.first, first.fresh, first.folded.observation.blind) == (True, True, True)
    second = observe(look(15.0, {"r": router(15.0, 9)}), first.counters, polled=False)
    assert (second.first, second.folded.observation.prefill.arrivals) == (False, 4.0)


def test_without_a_router_there_is_no_first_look() -> None:
    assert not observe(look(10.0, {}), Memory(), polled=False).first
    assert not observe(look(10.0, {"r": None}), Memory(), polled=False).first


@pytest.mark.parametrize(
    ("routers", "now_s", "fresh"),
    [
        pytest.param({"r": router(20.0, 9), "s": router(21.0, 9)}, 25.0, True, id="all were scraped again"),
        pytest.param({"r": router(20.0, 9), "s": router(10.0, 5)}, 25.0, False, id="one was not"),
        pytest.param({"r": router(20.0, 9), "new": router(3.0, 1)}, 25.0, True, id="one is new"),
        pytest.param({"r": router(20.0, 9), "s": None}, 25.0, True, id="one is silent"),
        pytest.param({"r": router(10.0, 5)}, 25.0, False, id="none was"),
        pytest.param({"r": router(10.0, 5)}, 55.0, True, id="none was for long"),
    ],
)
def test_a_prometheus_says_something_new_once_every_router_was_scraped(
    routers: dict[str, Sample | None], now_s: float, fresh: bool
) -> None:
    first = look(10.0, {"r": router(10.0, 5), "s": router(10.0, 5)})
    seen = after(first, look(now_s, routers))
    assert seen.fresh == fresh
    kept = observe(first, Memory(), polled=True).counters
    # What was not scraped is compared again with the look before.
    assert (seen.counters == kept) == (not fresh)
    if not fresh:
        assert math.isnan(seen.folded.observation.prefill.arrivals)
