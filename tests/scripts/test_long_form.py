"""The page about a run of the long form names every test and what came of it."""

from __future__ import annotations

from scripts.long_form import Case, cases, page

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.engines.test_faults" name="test_a_kill" time="12.3"/>
<testcase classname="tests.engines.test_lora" name="test_60_of_60[x]" time="1"><failure message="no">no</failure></testcase>
</testsuite></testsuites>"""


def test_a_report_of_pytest_becomes_a_page() -> None:
    found = cases(REPORT)
    assert found == [
        Case("test faults: a kill", 12.3, "passed"),
        Case("test lora: 60 of 60[x]", 1.0, "failure"),
    ]
    text = page("Engines", "make test-engines", found, "AMD EPYC, 2 cores", "2026-11-30")
    assert "`make test-engines`, 2026-11-30, AMD EPYC, 2 cores: 1 of 2 passed." in text
    assert "| test faults: a kill | passed | 12 |" in text
