"""The planner agrees with what AISimulate said, and the page in the repository says so.

AISimulate itself is not needed here: what it said is recorded. `make bench-aisimulate` asks it.
"""

from __future__ import annotations

import pytest
from benchmarks.aisimulate.__main__ import REPORT, comparisons, page
from benchmarks.aisimulate.comparison import LEAST_AGREEING, STEPS_WITHIN
from benchmarks.aisimulate.referee import recorded
from benchmarks.aisimulate.shapes import SHAPES


def test_every_shape_is_recorded_once() -> None:
    assert len(SHAPES) == 12
    assert sorted(recorded()) == sorted({shape.title for shape in SHAPES})


def test_steps_are_as_long_as_the_kernels_together() -> None:
    for comparison in comparisons():
        assert comparison.ratios == pytest.approx((1.0, 1.0, 1.0), abs=STEPS_WITHIN), comparison.shape.title


def test_the_verdict_is_the_same_in_11_of_12_shapes() -> None:
    assert sum(comparison.agrees for comparison in comparisons()) >= LEAST_AGREEING


def test_the_page_is_up_to_date() -> None:
    assert REPORT.read_text(encoding="utf-8") == page()
