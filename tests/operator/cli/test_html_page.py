"""Pages with charts, in one file that needs no other."""

from __future__ import annotations

import hashlib
import math
import re
from html.parser import HTMLParser

import pytest
from tests.operator.cli.html_charts import charts_of

from disagg_operator.cli import html_page
from disagg_operator.cli.html_page import Axis, Chart, Guide, Made, Series
from disagg_wire.version import VERSION

# Of npm's uplot 1.6.32, dist/.
UPLOT = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
CHART = Chart(
    "A </script> title", Axis("x", log=True), Axis("%", low=98.0, high=100.0), [1.0, 2.0, 3.0],
    [Series("one", [1.23456789, math.nan, math.inf], html_page.BLUE), Series("two", [1, 2, 3], html_page.RED, True, 1)],
    [Guide("y", 99.0, "goal")], "time",
)  # fmt: skip


def made(charts: list[Chart]) -> str:
    return html_page.page("a <b>", "<p>before</p>", charts, "<p>after</p>", Made("disagg x --y '<'", ["p: <q>"]))


def test_a_page_holds_its_charts_and_loads_nothing() -> None:
    page = made([CHART])
    (chart,) = charts_of(page)
    assert chart["title"] == CHART.title
    assert chart["data"] == [[1.0, 2.0, 3.0], [1.2346, None, None], [1.0, 2.0, 3.0]]
    assert chart["y"] == {"label": "%", "log": False, "low": 98.0, "high": 100.0}
    assert chart["lines"] == [{"axis": "y", "at": 99.0, "label": "goal"}]
    assert [s["dashed"] for s in chart["series"]] == [False, True]
    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(v or "" for k, v in attrs if k in ("src", "href"))

    Reader().feed(page)
    assert links == []
    assert "@import" not in page
    assert not re.search(r"url\(", page)
    assert len(page) < 120_000


def test_a_page_says_how_it_was_made_and_has_a_dark_scheme() -> None:
    page = made([CHART])
    assert "<title>a &lt;b&gt;</title>" in page
    assert f"disagg {VERSION}<br><code>disagg x --y &#x27;&lt;&#x27;</code><br>profile: p: &lt;q&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert "<p>before</p>" in page
    assert "<p>after</p>" in page


def test_a_page_without_charts_does_not_explain_them() -> None:
    assert "drag to zoom" in made([CHART])
    assert "drag to zoom" not in made([])


def test_tables_scroll_and_everything_is_escaped() -> None:
    assert html_page.table(["<c>"], [["<d>"]]) == (
        '<div class="table"><table><tr><th>&lt;c&gt;</th></tr><tr><td>&lt;d&gt;</td></tr></table></div>'
    )
    assert html_page.bullets(["<s>"]) == "<ul><li>&lt;s&gt;</li></ul>"
    assert html_page.definitions([("<k>", "<v>")]) == "<dl><dt>&lt;k&gt;</dt><dd>&lt;v&gt;</dd></dl>"


@pytest.mark.parametrize("name", UPLOT)
def test_the_bundled_library_is_the_release(name: str) -> None:
    assert hashlib.sha256((html_page._ASSETS / name).read_bytes()).hexdigest() == UPLOT[name]
