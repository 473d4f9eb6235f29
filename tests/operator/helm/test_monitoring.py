"""Tests of what the chart installs for Prometheus, Grafana and Perses."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from scripts.dashboards.every import boards
from tests.integration.apiserver import program_path
from tests.operator.api.resources import Obj

pytestmark = pytest.mark.apiserver

REPO = Path(__file__).resolve().parents[3]
CHART = REPO / "helm/disagg"
KNOWN = ("--api-versions", "monitoring.coreos.com/v1")
MONITORS = ("--set", "monitoring.podMonitors.enabled=true")
RULES = ("--set", "monitoring.rules.enabled=true")
GRAFANA = ("--set", "monitoring.dashboards.grafana.enabled=true")
PERSES = ("--set", "monitoring.dashboards.perses.enabled=true")
CONFIG_MAP, POD_MONITOR = "ConfigMap", "PodMonitor"


def helm(*arguments: str) -> str:
    words = [program_path("helm"), *arguments, "--namespace", "sys"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(kind: str, *arguments: str) -> dict[str, Obj]:
    text = helm("template", "disagg", str(CHART), "--kube-version", "1.37.0", *arguments)
    return {o["metadata"]["name"]: o for o in yaml.safe_load_all(text) if o and o["kind"] == kind}


@pytest.fixture
def notes(tmp_path: Path) -> Callable[..., str]:
    """Return what renders the notes, which helm itself shows only of a cluster."""
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    shutil.move(chart / "templates/NOTES.txt", chart / "notes.txt")
    told = 'kind: Told\ntext: {{ tpl (.Files.Get "notes.txt") . | toJson }}\n'
    (chart / "templates/told.yaml").write_text(told)

    def rendered_notes(*arguments: str) -> str:
        text = helm("template", "disagg", str(chart), "--kube-version", "1.37.0", *arguments)
        return str(next(o["text"] for o in yaml.safe_load_all(text) if o and o["kind"] == "Told"))

    return rendered_notes


def test_pods_are_scraped_as_the_examples_do_where_the_kind_is_known_and_it_is_wanted() -> None:
    for arguments in ((), MONITORS, KNOWN):
        assert rendered(POD_MONITOR, *arguments) == {}
    found = rendered(POD_MONITOR, *MONITORS, *KNOWN)
    pods, operators = yaml.safe_load_all((REPO / "examples/hpa/podmonitor.yaml").read_text())
    installed = found["disagg-operator-pods"]["spec"]
    assert installed == {**pods["spec"], "namespaceSelector": {"any": True}}
    own = found["disagg-operator"]["spec"]
    assert own["podMetricsEndpoints"] == operators["spec"]["podMetricsEndpoints"]
    assert operators["spec"]["selector"]["matchLabels"].items() <= own["selector"]["matchLabels"].items()


def test_only_watched_namespaces_are_scraped_and_only_the_operator_of_scalers() -> None:
    more = ("--set", "watchNamespaces={a,b}", "--set", "monitoring.podMonitors.labels.release=kps")
    found = rendered(POD_MONITOR, *MONITORS, *KNOWN, *more)
    assert found["disagg-operator-pods"]["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}
    assert {o["metadata"]["labels"]["release"] for o in found.values()} == {"kps"}
    assert set(rendered(POD_MONITOR, *MONITORS, *KNOWN, "--set", "scalerOnly=true")) == {"disagg-operator"}


@pytest.mark.parametrize(
    ("program", "wanted", "label"),
    [
        ("grafana", GRAFANA, ("grafana_dashboard", "1")),
        ("perses", PERSES, ("perses.dev/resource", "true")),
    ],
)
def test_dashboards_are_config_maps_with_the_label_of_a_sidecar(
    program: str, wanted: tuple[str, ...], label: tuple[str, str]
) -> None:
    assert rendered(CONFIG_MAP) == {}
    found = rendered(CONFIG_MAP, *wanted)
    assert set(found) == {f"{b.name.replace('disagg', 'disagg-operator')}-{program}" for b in boards()}
    for one in found.values():
        assert label in one["metadata"]["labels"].items()
        ((name, text),) = one["data"].items()
        assert json.loads(text) == json.loads((CHART / "dashboards" / program / name).read_text())
    named = rendered(
        CONFIG_MAP,
        *wanted,
        "--set", f"monitoring.dashboards.{program}.label=find-me",
        "--set-string", f"monitoring.dashboards.{program}.labelValue=yes",
        "--set", f"monitoring.dashboards.{program}.annotations.grafana_folder=disagg",
    )  # fmt: skip
    for one in named.values():
        assert one["metadata"]["labels"]["find-me"] == "yes"
        assert one["metadata"]["annotations"] == {"grafana_folder": "disagg"}


def test_limits_of_alerts_can_be_set() -> None:
    def expressions(*arguments: str) -> dict[str, str]:
        (rule,) = rendered("PrometheusRule", *RULES, *KNOWN, *arguments).values()
        return {r["alert"]: r["expr"] for g in rule["spec"]["groups"] for r in g["rules"] if "alert" in r}

    before = expressions()
    after = expressions(
        "--set", "monitoring.rules.limits.LeasesHeld=120", "--set", "monitoring.rules.limits.Shedding=0.05"
    )  # fmt: skip
    assert after["DisaggLeasesHeld"] == before["DisaggLeasesHeld"].replace("> 60", "> 120")
    assert " > 0.05 * " in after["DisaggShedding"]
    assert {name for name in before if before[name] != after[name]} == {"DisaggLeasesHeld", "DisaggShedding"}
    more = ("--kube-version", "1.37.0", "--set", "monitoring.rules.limits.Nothing=1")
    words = [program_path("helm"), "template", str(CHART), *more]
    refused = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "monitoring.rules.limits.Nothing: there is no such limit" in refused.stderr


def test_notes_say_what_is_not_there(notes: Callable[..., str]) -> None:
    assert "no PrometheusRule here" in notes(*RULES)
    assert "no PodMonitors here" in notes(*MONITORS)
    assert "recording rules" in notes(*GRAFANA)
    assert "recording rules" not in notes(*GRAFANA, *RULES)
    plain = notes()
    assert "here, since the cluster does not know that kind" not in plain
    assert "recording rules" not in plain
