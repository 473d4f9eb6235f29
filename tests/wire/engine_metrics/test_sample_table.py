"""Histograms of engines, as far as their buckets tell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from disagg_wire.engine_metrics import sglang, vllm
from disagg_wire.engine_metrics.readings import PoolReadings
from disagg_wire.engine_metrics.sample_table import Distribution, Samples, names_read, selected

BUCKETS = [({"le": "1.0"}, 2.0), ({"le": "2"}, 6.0), ({"le": "+Inf"}, 8.0)]


def histogram(rows: list[tuple[dict[str, str], float]] = BUCKETS, total: float = 12.0) -> Distribution:
    return Samples({"t_bucket": rows, "t_sum": [({}, total)]}).distribution("t")


def test_the_buckets_of_all_engines_of_a_pod_are_one_histogram() -> None:
    found = histogram([*BUCKETS, *[({**labels, "engine": "1"}, value) for labels, value in BUCKETS]], 24.0)
    assert found == Distribution((1.0, 2.0, math.inf), (4.0, 8.0, 4.0), 24.0)
    assert found.number == 16


@pytest.mark.parametrize(("limit", "n"), [(0.0, 0), (0.5, 1), (1.0, 2), (1.5, 4), (2.0, 6), (1e9, 6)])
def test_observations_are_spread_within_their_bucket_and_the_last_one_is_above_all(limit: float, n: float) -> None:
    assert histogram().within(limit) == n


def test_sums_that_the_buckets_tell_only_grow() -> None:
    first, second = histogram().estimated_sums()
    assert first == pytest.approx(2 * 0.5 + 4 * 1.5 + 2 * 3)
    more = histogram([({"le": "1.0"}, 2.0), ({"le": "2"}, 7.0), ({"le": "+Inf"}, 9.0)])
    assert more.estimated_sums() > (first, second)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [({"le": "1.0"}, 2.0)],  # without the last bucket nobody knows how many there are
        [({"le": "x"}, 2.0)],
        [({"le": "NaN"}, 2.0)],
        [({"le": "1.0"}, math.nan)],
    ],
)
def test_what_is_no_histogram_is_unknown(rows: list[tuple[dict[str, str], float]]) -> None:
    found = histogram(rows)
    assert replace(found, total=0.0) == Distribution(total=0.0)
    assert all(map(math.isnan, (found.total, found.number, found.within(1.0), *found.estimated_sums())))


def test_counts_that_shrink_are_none() -> None:
    assert histogram([({"le": "1"}, 3.0), ({"le": "2"}, 2.0), ({"le": "+Inf"}, 4.0)]).counts == (3.0, 0.0, 2.0)


def test_the_first_histogram_that_there_is_counts() -> None:
    samples = Samples({"b_bucket": BUCKETS})
    assert samples.distribution("a", "b").number == 8
    assert samples.distribution("a").bounds == ()


def test_a_reader_says_itself_which_names_it_reads() -> None:
    assert names_read(lambda samples: samples.value("b") + samples.mean("a")) == ("a", "b")
    for engine in (vllm, sglang):
        names = names_read(engine.pool_readings_of)
        assert len(names) > 20
        # What is read of nothing but these names is what is read of everything.
        everything = Samples({name: [({"le": "+Inf"}, 1.0)] for name in (*names, "other")})
        only = Samples({name: [({"le": "+Inf"}, 1.0)] for name in names})
        assert repr(engine.pool_readings_of(everything)) == repr(engine.pool_readings_of(only))


def test_nothing_is_known_of_an_empty_page() -> None:
    for engine in (vllm, sglang):
        found = engine.pool_readings_of(Samples())
        assert isinstance(found, PoolReadings)
        assert math.isnan(found.finished_total)


def test_a_selector_asks_for_one_value_of_a_label() -> None:
    assert selected('a:b{c="d"}') == ("a:b", {"c": "d"})
    assert selected("a:b") == ("a:b", {})
    samples = Samples({"a": [({"m": "x"}, 1.0), ({"m": "y"}, 2.0)], "b_sum": [({}, 5.0)], "c": [({}, math.nan)]})
    assert samples.first(('a{m="y"}', "a")) == 2
    assert samples.first(('a{m="z"}', "a")) == 3
    assert samples.first(("z", "c", "b"), "_sum") == 5
    assert math.isnan(samples.first(("z", "c")))
    assert math.isnan(samples.mean("y", "z"))
    assert samples.mean("z", "a") == 1.5


def test_what_repeats_another_rank_counts_once() -> None:
    rows = [({"tp_rank": "0", "dp": "0"}, 3.0), ({"tp_rank": "1", "dp": "0"}, 3.0), ({"dp": "1"}, 4.0)]
    samples = Samples({"a": rows}, copies=("tp_rank",))
    assert (samples.value("a"), samples.mean("a"), samples.by_label("a", "dp")) == (7, 3.5, {"0": 3, "1": 4})
    assert samples.labels("a") == rows[0][0]
    assert Samples({"a": rows}).value("a") == 10
