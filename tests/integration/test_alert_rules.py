"""Each alert fires on its fault alone and ends with it, as promtool computes it.

promtool comes with the Prometheus that `make programs` installs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.operator.status.alerts import faults

from disagg_operator.status.alerts import rule_file

pytestmark = pytest.mark.apiserver
_FIRING = 'count by (alertname, namespace, window) (ALERTS{{alertstate="firing"{}}})'


def promtool(folder: Path, *tests: dict[str, Any], every: str = "1m") -> None:
    """Run tests of the rules, which end with an assertion if one fails."""
    (folder / "disagg.rules.yaml").write_text(rule_file.as_text())
    content = {"rule_files": ["disagg.rules.yaml"], "evaluation_interval": every, "tests": list(tests)}
    (folder / "tests.yaml").write_text(json.dumps(content))
    run = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def firing(minute: int, *alerts: str, of: str | None = None) -> dict[str, Any]:
    """Expect exactly these alerts, each with the labels behind its name, once: all there are, or
    those of a fault's deployment, or those about no deployment.
    """
    samples = []
    for alert in alerts:
        name, comma, labels = alert.partition(",")
        samples.append({"labels": f'{{alertname="Disagg{name}"{comma}{labels}}}', "value": 1})
    chosen = "" if of is None else f',namespace="{of and faults.namespace(of)}"'
    return {"expr": _FIRING.format(chosen), "eval_time": f"{minute}m", "exp_samples": samples}


def test_the_rules_are_valid(tmp_path: Path) -> None:
    (tmp_path / "disagg.rules.yaml").write_text(rule_file.as_text())
    subprocess.run(["promtool", "check", "rules", tmp_path / "disagg.rules.yaml"], check=True, timeout=60)


def checks_of(name: str, fault: faults.Fault) -> list[dict[str, Any]]:
    quiet = (faults.BEGINS - 1, faults.BEGINS + fault.lasts - 1, faults.OVER)
    there = (faults.BEGINS + fault.after, faults.ENDS - 1)
    alert = f'{name},namespace="{faults.namespace(name)}"'
    return [firing(m, of=name) for m in quiet] + [firing(m, alert, of=name) for m in there]


def test_each_alert_fires_on_its_fault_alone_and_ends_with_it(tmp_path: Path) -> None:
    """All faults at once, each in a deployment of its own, and a deployment that is healthy."""
    checks = [
        check
        for name, fault in faults.FAULTS.items()
        if name not in faults.OF_CLUSTER
        for check in checks_of(name, fault)
    ]
    checks += [firing(minute, of=faults.HEALTHY) for minute in range(0, faults.OVER, 10)]
    # Those about no deployment, and no others.
    down, lost = (faults.FAULTS[name] for name in ("OperatorDown", "DrainLostRequests"))
    expected = {
        faults.BEGINS - 1: (),
        faults.BEGINS + lost.after: ("DrainLostRequests",),
        faults.BEGINS + down.lasts - 1: ("DrainLostRequests",),
        faults.BEGINS + down.after: ("DrainLostRequests", "OperatorDown"),
        faults.ENDS - 1: ("DrainLostRequests", "OperatorDown"),
        faults.OVER: (),
    }
    checks += [firing(minute, *alerts, of="") for minute, alerts in expected.items()]
    given = faults.series(faults.FAULTS)
    promtool(tmp_path, {"interval": "1m", "input_series": given, "promql_expr_test": checks})


def test_without_data_nothing_fires_but_that_there_is_no_operator(tmp_path: Path) -> None:
    promtool(tmp_path, {"interval": "1m", "input_series": [], "promql_expr_test": [firing(60, "OperatorDown")]})


MISSES = {
    "availability": {
        'router_generations_total "failed_before_first"': 600, 'router_generations_total "completed"': 0
    },
    **{
        name: {
            f'router_objective_requests_total "{name}" "false"': 600,
            f'router_objective_requests_total "{name}" "true"': 0,
        }
        for name in ("ttft", "tpot")
    },
}  # fmt: skip


def test_a_budget_that_burns_fast_pages_and_ends(tmp_path: Path) -> None:
    checks = []
    for name in MISSES:
        of = f'BudgetBurn,namespace="{faults.namespace(name)}",window="{{}}"'.format
        checks += [
            firing(faults.BEGINS - 1, of=name),
            firing(faults.BEGINS + 3, of=name),
            firing(faults.BEGINS + 13, of("1h"), of=name),
            firing(faults.BEGINS + 30, of("6h"), of=name),
            firing(faults.BEGINS + 55, of=name),
        ]
    burning = {name: faults.Fault(changes, 0, 0) for name, changes in MISSES.items()}
    given = faults.series(burning, faults.BEGINS + 14)
    promtool(tmp_path, {"interval": "1m", "input_series": given, "promql_expr_test": checks})


def test_a_budget_that_burns_slowly_is_a_warning(tmp_path: Path) -> None:
    def burning(name: str, missed: float) -> list[dict[str, str]]:
        labels = f'namespace="{faults.namespace(name)}",disagg_deployment="chat",objective="ttft",within='
        series = f"disagg_router_objective_requests_total{{{labels}"
        return [
            {"series": f'{series}"false"}}', "values": f"0+{missed}x864"},
            {"series": f'{series}"true"}}', "values": f"0+{1000 - missed}x864"},
        ]

    def of(name: str, window: str) -> str:
        return f'BudgetBurn,namespace="{faults.namespace(name)}",window="{window}"'

    day = 24 * 60
    cases: dict[str, tuple[float, list[dict[str, Any]]]] = {
        "fast": (40, [firing(30, of="fast"), firing(3 * day, of("fast", "1d"), of("fast", "3d"), of="fast")]),
        "slow": (15, [firing(170, of="slow"), firing(3 * day, of("slow", "3d"), of="slow")]),
        "none": (9, [firing(3 * day, of="none")]),
        "few": (0.001, [firing(60, of="few")]),
    }
    given = [{"series": 'disagg_build_info{component="operator"}', "values": "1x864"}]
    given += [line for name, (missed, _) in cases.items() for line in burning(name, missed)]
    checks = [check for _, expected in cases.values() for check in expected]
    promtool(tmp_path, {"interval": "5m", "input_series": given, "promql_expr_test": checks}, every="5m")
