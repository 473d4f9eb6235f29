"""Tests that the files of examples/hpa name series and metrics that exist, and each other's.

tests/e2e/test_hpa.py runs them end to end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_wire.series import READ_OF_ROUTERS, READ_OF_WORKERS

EXAMPLES = Path(__file__).parents[1] / "examples/hpa"


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))


def rules() -> dict[str, Any]:
    (config,) = load("adapter-rules")
    return dict(yaml.safe_load(config["data"]["config.yaml"]))


def given(rule: dict[str, Any]) -> str:
    """Return the name of the metric that a rule provides."""
    return str(rule.get("name", {}).get("as") or rule["seriesQuery"].partition("{")[0])


@pytest.mark.parametrize("file", ["adapter-rules", "keda"])
def test_every_series_is_one_that_a_router_or_worker_exports(file: str) -> None:
    text = str([rule["seriesQuery"] + rule["metricsQuery"] for kind in rules().values() for rule in kind])
    if file == "keda":
        text = str([t["metadata"]["query"] for obj in load(file) for t in obj["spec"]["triggers"]])
    named = set(re.findall(r"disagg_(?:worker|router)_\w+", text))
    assert len(named) == 3
    assert named <= {*READ_OF_ROUTERS, *READ_OF_WORKERS}


def test_the_hpas_ask_for_metrics_that_the_rules_give() -> None:
    pods = {given(rule) for rule in rules()["rules"]}
    external = {given(rule) for rule in rules()["externalRules"]}
    for hpa in load("pools"):
        by_type = {m["type"]: m[m["type"].lower()]["metric"] for m in hpa["spec"]["metrics"]}
        assert by_type["Pods"]["name"] in pods
        assert by_type["External"]["name"] in external
        pool = hpa["metadata"]["name"].removeprefix("chat-")
        assert by_type["External"]["selector"]["matchLabels"] == {"disagg_deployment": "chat", "pool": pool}


@pytest.mark.parametrize("file", ["pools", "keda"])
def test_each_pool_has_one_scaler_with_the_same_bounds(file: str) -> None:
    found = {obj["spec"]["scaleTargetRef"]["name"]: obj["spec"] for obj in load(file)}
    assert sorted(found) == ["chat-decode", "chat-prefill"]
    assert {spec["scaleTargetRef"]["kind"] for spec in found.values()} == {"DisaggPool"}
    most = "maxReplicas" if file == "pools" else "maxReplicaCount"
    assert [found[name][most] for name in sorted(found)] == [16, 8]


def test_both_ways_of_scraping_give_the_label_that_the_hpas_select_by() -> None:
    (scraping,), (monitor, _) = load("scrape"), load("podmonitor")
    labels = {r.get("target_label") for r in scraping["scrape_configs"][0]["relabel_configs"]}
    assert {"namespace", "pod", "disagg_deployment", "disagg_pool"} <= labels
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert [r["targetLabel"] for r in endpoint["relabelings"]] == ["disagg_deployment", "disagg_pool"]


def test_both_ways_scrape_the_operator_and_leave_it_its_labels() -> None:
    (scraping,), (_, monitor) = load("scrape"), load("podmonitor")
    job = scraping["scrape_configs"][1]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (job["honor_labels"], endpoint["honorLabels"]) == (True, True)
    assert monitor["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": job["relabel_configs"][0]["regex"]}
    assert endpoint["port"] == job["relabel_configs"][1]["regex"]
