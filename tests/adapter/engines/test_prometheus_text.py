"""Tests of the samples on a /metrics page."""

from __future__ import annotations

import math

import pytest

from disagg_adapter.engines.prometheus_text import parse_samples

PAGE = """# HELP a_total what
# TYPE a_total counter
a_total{engine="0",part="x"} 3.0
a_total{engine="1",part="x"} 4.0
a_total{engine="1",part="y"} 5.0
h_bucket{le="1.0"} 9.0
h_sum 2.5

use{engine="0"} 0.5
use{engine="1"} 0.25
"""


def test_samples_of_several_replicas_are_summed_or_averaged() -> None:
    samples = parse_samples(PAGE)
    assert samples.value("a_total") == 12
    assert samples.value("a_total", part="x") == 7
    assert samples.by_label("a_total", "part") == {"x": 7, "y": 5}
    assert samples.by_label("a_total", "nothing") == {}
    assert samples.mean("use") == 0.375
    assert samples.labels("use") == {"engine": "0"}
    assert samples.value("h_sum") == 2.5


def test_what_is_not_there_is_unknown_and_buckets_are_left_out() -> None:
    samples = parse_samples(PAGE)
    assert math.isnan(samples.value("h_bucket"))
    assert math.isnan(samples.value("a_total", part="z"))
    assert math.isnan(samples.mean("none"))
    assert samples.labels("none") is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_what_is_no_number_is_unknown(value: str) -> None:
    samples = parse_samples(f'a{{x="1"}} {value}\na{{x="2"}} 3\n')
    assert math.isnan(samples.value("a"))
    assert samples.value("a", x="2") == 3


@pytest.mark.parametrize("page", ["a 1\n" * 10_001, "#" * ((4 << 20) + 1)])
def test_a_page_that_would_take_seconds_to_read_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match="the page"):
        parse_samples(page)


@pytest.mark.parametrize("page", ["<html>no</html>", 'a{b="c" 1', "a one"])
def test_a_garbled_page_is_an_error(page: str) -> None:
    with pytest.raises(ValueError):
        parse_samples(page)
