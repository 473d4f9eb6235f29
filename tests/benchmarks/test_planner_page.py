"""The planner meets published measurements of one pool, and the page in the repository says so."""

from __future__ import annotations

import pytest
from benchmarks.planner.__main__ import REPORT, page
from benchmarks.planner.published import HIGH, LOW, ROWS, Row, answer


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.model} {r.gpu} {r.prompt_tokens}")
def test_one_pool_is_planned_as_it_was_measured(row: Row) -> None:
    assert LOW <= answer(row).one_pool / row.published <= HIGH


def test_the_page_is_up_to_date() -> None:
    assert REPORT.read_text(encoding="utf-8") == page()
