"""The page about a run of the long form names every test and what came of it."""

from __future__ import annotations

from scripts.long_form import Case, cases, page

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.engines.test_faults" name="test_a_kill" time="12.3"/>
<testcase classname="tests.engines.test_lora" name="test_60_of_60[x]" time="1"><failure/></testcase>
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


def test_what_a_test_has_measured_is_on_the_page() -> None:
    report = """<testsuites><testsuite name="pytest">
<testcase classname="tests.e2e.test_scaler" name="test_it" time="9">
<properties><property name="KEDA" value="97 %"/><property name="ours" value="99 %"/></properties>
</testcase></testsuite></testsuites>"""
    text = page("Scaler", "make test-scaler", cases(report), "AMD EPYC, 2 cores", "2026-11-30")
    assert text.endswith("\n\ntest scaler: it:\n\n- KEDA: 97 %\n- ours: 99 %\n")
