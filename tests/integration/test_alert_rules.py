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
FIRING = 'count by (alertname, namespace, window) (ALERTS{alertstate="firing"})'


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
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def firing(minute: int, *alerts: str) -> dict[str, Any]:
    """Expect exactly these alerts, each with the labels behind its name, once."""
    samples = []
    for alert in alerts:
        name, comma, labels = alert.partition(",")
        samples.append({"labels": f'{{alertname="Disagg{name}"{comma}{labels}}}', "value": 1})
    return {"expr": FIRING, "eval_time": f"{minute}m", "exp_samples": samples}


def test_the_rules_are_valid(tmp_path: Path) -> None:
    (tmp_path / "disagg.rules.yaml").write_text(rule_file.as_text())
    subprocess.run(["promtool", "check", "rules", tmp_path / "disagg.rules.yaml"], check=True, timeout=60)


@pytest.mark.parametrize("name", faults.FAULTS)
def test_an_alert_fires_on_its_fault_alone_and_ends_with_it(tmp_path: Path, name: str) -> None:
    fault = faults.FAULTS[name]
    about = "" if name in ("OperatorDown", "DrainLostRequests") else ',namespace="ml"'
    checks = [firing(minute) for minute in (faults.BEGINS - 1, faults.BEGINS + fault.lasts - 1, faults.OVER)]
    checks += [firing(minute, f"{name}{about}") for minute in (faults.BEGINS + fault.after, faults.ENDS - 1)]
    promtool(tmp_path, {"interval": "1m", "input_series": faults.series(fault), "promql_expr_test": checks})


def test_nothing_fires_on_a_healthy_deployment_and_without_data_the_operator_alone(tmp_path: Path) -> None:
    promtool(
        tmp_path,
        {
            "interval": "1m",
            "input_series": faults.series(None),
            "promql_expr_test": [firing(minute) for minute in range(0, faults.OVER, 10)],
        },
        {"interval": "1m", "input_series": [], "promql_expr_test": [firing(60, "OperatorDown")]},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {'router_generations_total "failed_before_first"': 600, 'router_generations_total "completed"': 0},
        {'router_objective_requests_total "ttft" "false"': 600, 'router_objective_requests_total "ttft" "true"': 0},
        {'router_objective_requests_total "tpot" "false"': 600, 'router_objective_requests_total "tpot" "true"': 0},
    ],
    ids=["availability", "ttft", "tpot"],
)
def test_a_budget_that_burns_fast_pages_and_ends(tmp_path: Path, changes: dict[str, float]) -> None:
    ends, of = faults.BEGINS + 14, 'BudgetBurn,namespace="ml",window="{}"'.format
    checks = [
        firing(faults.BEGINS - 1),
        firing(faults.BEGINS + 3),
        firing(faults.BEGINS + 13, of("1h")),
        firing(faults.BEGINS + 30, of("6h")),
        firing(faults.BEGINS + 55),
    ]
    given = faults.series(faults.Fault(changes, 0, 0), ends)
    promtool(tmp_path, {"interval": "1m", "input_series": given, "promql_expr_test": checks})


def test_a_budget_that_burns_slowly_is_a_warning(tmp_path: Path) -> None:
    def burning(missed: float) -> list[dict[str, str]]:
        name = 'disagg_router_objective_requests_total{namespace="ml",disagg_deployment="chat",objective="ttft",within='
        running = 'disagg_build_info{component="operator"}'
        return [
            {"series": f'{name}"false"}}', "values": f"0+{missed}x1200"},
            {"series": f'{name}"true"}}', "values": f"0+{1000 - missed}x1200"},
            {"series": running, "values": "1x1200"},
        ]

    of, day = 'BudgetBurn,namespace="ml",window="{}"'.format, 24 * 60
    fast = [firing(30), firing(3 * day, of("1d"), of("3d"))]
    slow = [firing(170), firing(3 * day, of("3d"))]
    none = [firing(3 * day)]
    few = [firing(60)]
    promtool(
        tmp_path,
        *(
            {"interval": "5m", "input_series": burning(missed), "promql_expr_test": checks}
            for missed, checks in ((40, fast), (15, slow), (9, none), (0.001, few))
        ),
        every="5m",
    )
