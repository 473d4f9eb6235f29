"""Tests of what is put together from looks at engines."""

from __future__ import annotations

import math

import pytest
from tests.operator.planning.assessment.pages import Page, metrics_of
from tests.operator.planning.assessment.test_bucket_counts import counted

from disagg_operator.planning.assessment import readings
from disagg_operator.planning.assessment.engine_page import parse
from disagg_operator.planning.assessment.readings import AssessError, Snapshot, Watch


def look(watch: Watch, page: Page, at_s: float, worker: str = "a") -> None:
    for found in parse(page.text(), metrics_of(page.engine), at_s).values():
        watch.take(worker, found)


def test_only_what_came_meanwhile_counts() -> None:
    page, watch = Page("vllm"), Watch("vllm", 0.05)
    page.numbers["running"] = 2
    page.request(9000, 400)
    look(watch, page, 10.0)
    page.request(100, 3, cached=60, gaps_s=[0.02, 0.08])
    page.numbers["running"] = 4
    look(watch, page, 11.0)
    found = watch.readings()
    assert found.span_s == 1.0
    assert found.models == ("llama-3.1-70b",)
    assert found.histograms["prompt_lengths"].total == 100
    assert (found.prompt_tokens, found.cached_tokens) == (100, 60)
    assert found.arrivals == ((11.0, 1.0, 1.0),)
    (window,) = found.windows
    assert (window.requests, window.computed_tokens, window.gaps, window.running) == (1, 40, 2, 3)
    assert window.gaps_s == pytest.approx(0.1)
    assert window.late == 1  # of 20 and 80 ms, at an objective of 50 ms
    assert found.late_s == 0.05


def test_an_engine_that_restarts_counts_from_then_on() -> None:
    page, watch = Page("vllm"), Watch("vllm", 0.05)
    for _ in range(5):
        page.request(100, 3)
    look(watch, page, 0.0)
    fresh = Page("vllm")
    fresh.request(700, 3)
    look(watch, fresh, 1.0)
    with pytest.raises(AssessError, match=r"^no request ended within 1 s: watch for longer \(--for\)$"):
        watch.readings()
    fresh.request(800, 3)
    look(watch, fresh, 2.0)
    assert watch.readings().histograms["prompt_lengths"].total == 800


def test_series_that_begin_with_their_first_value() -> None:
    idle, watch = Page("sglang"), Watch("sglang", 0.05)
    idle.numbers["running"] = 0
    look(watch, idle, 0.0)
    idle.request(300, 3, cached=100)
    look(watch, idle, 1.0)
    found = watch.readings()
    assert (found.prompt_tokens, found.cached_tokens, found.windows[0].computed_tokens) == (300, 100, 200)


def test_engines_that_do_not_count_what_they_compute() -> None:
    page, watch = Page("vllm"), Watch("vllm", 0.05)
    for at_s in (0.0, 1.0):
        page.request(100, 3, cached=30)
        del page.numbers["computed_tokens"]
        look(watch, page, at_s)
    (window,) = watch.readings().windows
    assert window.computed_tokens == 70
    assert math.isnan(window.running)


def test_workers_are_put_together() -> None:
    pages, watch = [Page("vllm"), Page("vllm")], Watch("vllm", 0.05)
    for at_s in (0.0, 1.0):
        for name, page in zip("ab", pages, strict=True):
            page.request(100, 3)
            look(watch, page, at_s, name)
    found = watch.readings()
    assert found.workers == 2
    assert found.arrivals == ((1.0, 1.0, 2.0),)
    assert found.histograms["ttft"].count == 2


@pytest.mark.parametrize("name", ["ttft", "prompt_lengths"])
def test_an_engine_that_lacks_a_histogram_is_named(name: str) -> None:
    page, watch = Page("vllm"), Watch("vllm", 0.05)
    for at_s in (0.0, 1.0):
        page.request(100, 3)
        del page.counts[name]
        look(watch, page, at_s)
    with pytest.raises(AssessError, match=f"no {name.replace('_', ' ')}: it may be too old"):
        watch.readings()


def test_engines_without_times_of_tokens() -> None:
    some = {name: counted([7.0]) for name in readings.NEEDED}
    more = {name: counted([7.0, 7.0]) for name in readings.NEEDED}
    watch = Watch("vllm", 0.05)
    watch.take("a", Snapshot(0.0, {}, some))
    watch.take("a", Snapshot(1.0, {}, more))
    found = watch.readings()
    assert found.late_s == math.inf
    assert math.isnan(found.windows[0].computed_tokens)
