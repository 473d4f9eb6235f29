"""Tests of which traces are kept when their requests are over."""

from __future__ import annotations

import random

import pytest

from disagg_router.tracing.tail_sampling import Ending, Kept, why_kept

ALWAYS_DRAWN, NEVER_DRAWN = b"\x00" * 9 + b"\xff" * 7, b"\xff" * 9 + b"\x00" * 7


@pytest.mark.parametrize(
    ("ending", "ratio", "why"),
    [
        # What it continues decides, whatever happened.
        (Ending(NEVER_DRAWN, parent_sampled=True), 0.0, Kept.PARENT),
        (Ending(ALWAYS_DRAWN, parent_sampled=False), 1.0, None),
        (Ending(ALWAYS_DRAWN, parent_sampled=False, failed=True, slow=True, attempts=3), 1.0, None),
        # What tells something is kept, whatever the ratio.
        (Ending(NEVER_DRAWN, failed=True, slow=True, attempts=3), 0.0, Kept.ERROR),
        (Ending(NEVER_DRAWN, slow=True, attempts=3), 0.0, Kept.SLOW),
        (Ending(NEVER_DRAWN, attempts=2), 0.0, Kept.RETRIED),
        # A share of the rest.
        (Ending(NEVER_DRAWN, attempts=1), 0.999, None),
        (Ending(NEVER_DRAWN, attempts=1), 1.0, Kept.SHARE),
        (Ending(ALWAYS_DRAWN, attempts=1), 0.0, None),
        (Ending(ALWAYS_DRAWN, attempts=1), 1e-6, Kept.SHARE),
        (Ending(ALWAYS_DRAWN), 0.01, Kept.SHARE),
    ],
)
def test_the_table(ending: Ending, ratio: float, why: Kept | None) -> None:
    assert why_kept(ending, ratio) == why


@pytest.mark.parametrize("ratio", [0.01, 0.5])
def test_a_share_is_kept_and_a_larger_share_has_the_same_traces(ratio: float) -> None:
    ids = [random.Random(n).randbytes(16) for n in range(20_000)]
    kept = {i for i in ids if why_kept(Ending(i), ratio)}
    assert len(kept) / len(ids) == pytest.approx(ratio, rel=0.15)
    assert kept <= {i for i in ids if why_kept(Ending(i), ratio * 1.5)}
