"""Tests of the files of rules, of the runbook of each alert, and of the names in expressions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.operator.status.alerts.faults import FAULTS
from tests.wire import registries

from disagg_operator.status.alerts import limits, objectives, rule_file
from disagg_operator.status.alerts.alert import Alert

REPO = Path(__file__).parents[4]
ALERTS = {alert.full_name: alert for group in rule_file.alerts().values() for alert in group}
RECORDED = {rule["record"] for group in rule_file.groups() for rule in group["rules"] if "record" in rule}
# Labels that scrape configurations add.
SCRAPED = {"namespace", "pod", "disagg_deployment", "disagg_pool", "le"}


def test_the_text_is_the_rules() -> None:
    assert yaml.safe_load(rule_file.as_text()) == {"groups": rule_file.groups()}


def test_there_are_the_alerts_that_we_speak_of_and_each_has_a_fault() -> None:
    assert len(ALERTS) == 26
    assert set(ALERTS) == {f"Disagg{name}" for name in (*FAULTS, "BudgetBurn")}
    assert sorted(name for name, alert in ALERTS.items() if alert.severity == "critical") == [
        "DisaggEngineHung", "DisaggNotServing", "DisaggOperatorDown", "DisaggShedding",
    ]  # fmt: skip
    assert [alert.severity for alert in objectives.alerts()] == ["critical", "critical", "warning", "warning"]


@pytest.mark.parametrize("alert", ALERTS.values(), ids=list(ALERTS))
def test_each_alert_has_a_page_with_three_commands(alert: Alert) -> None:
    annotations = alert.rule()["annotations"]
    assert isinstance(annotations, dict)
    page = (REPO / annotations["runbook_url"]).read_text()
    assert page.startswith(f"# {alert.full_name}\n")
    assert re.findall("^## (.*)$", page, re.MULTILINE) == [
        "Meaning", "Impact", "First three commands", "How to end it",
    ]  # fmt: skip
    assert len(re.findall(r"^\$ ", page, re.MULTILINE)) == 3
    for link in re.findall(r"\]\((\w+\.md)\)", page):
        assert (REPO / "docs/runbooks" / link).exists()
    named = set(re.findall(r"disagg_(?:router|worker|kv|operator|autoscaler|prefill)_\w+", page))
    assert named <= listed()


def listed() -> set[str]:
    return set(re.findall(r"^\| `(\w+)`", (REPO / "docs/metrics.md").read_text(), re.MULTILINE))


def test_no_page_is_of_an_alert_that_is_none() -> None:
    assert {page.stem for page in (REPO / "docs/runbooks").glob("*.md")} == set(ALERTS)


def test_every_series_in_an_expression_is_listed_and_has_the_labels() -> None:
    labels: dict[str, frozenset[str]] = {}
    for process in registries.PROCESSES.values():
        for name, found in registries.series(process()).items():
            labels[name] = labels.get(name, frozenset()) | found
    pages = listed()
    for rule in (rule for group in rule_file.groups() for rule in group["rules"]):
        expression = rule["expr"].replace("disagg_deployment", "").replace("disagg_pool=", "pool_of_worker=")
        for name, matchers in re.findall(r"(?<![\w:])(disagg_\w+)(?:\{(.*?)\})?", expression):
            assert name in labels, expression
            assert re.sub("_(bucket|sum|count)$", "", name) in pages or name in pages
            used = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", matchers or "")) - {"pool_of_worker"}
            assert used <= labels[name] | SCRAPED, expression
        for name in re.findall(r"(?:slo|disagg):[\w:]+", expression):
            assert name in RECORDED


def test_an_alert_with_a_cut_off_share_can_fire() -> None:
    limits = [float(re.findall(r"> ([\d.]+)", alert.expression)[0]) for alert in objectives.alerts(0.1)]
    assert limits == [0.9, 0.6, 0.3, 0.1]


def test_every_limit_is_used_and_filled_in() -> None:
    form, text = rule_file.as_form(), rule_file.as_text()
    assert set(re.findall(r"@(\w+)@", form)) == set(limits.LIMITS)
    assert "@" not in text
    assert yaml.safe_load(limits.as_text()) == limits.LIMITS
    for name in limits.LIMITS:
        assert f"@{name}@" in ALERTS[f"Disagg{name}"].expression
    with pytest.raises(KeyError):
        limits.limit("Nothing")
