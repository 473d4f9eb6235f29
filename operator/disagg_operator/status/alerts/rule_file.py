"""PURE: The files of rules: all alerts and recording rules, plain or as a PrometheusRule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from disagg_operator.status.alerts import causes, objectives
from disagg_operator.status.alerts.alert import Alert
from disagg_operator.status.alerts.limits import filled

HEAD = "# Recording rules and alerts of disagg for Prometheus, written by `make generate` from code.\n"


def alerts() -> dict[str, list[Alert]]:
    """Return all alerts by the group that they are evaluated in."""
    return {
        "disagg-objectives": objectives.alerts(),
        "disagg-serving": causes.serving(),
        "disagg-transfers": causes.transfers(),
        "disagg-pools": causes.pools(),
        "disagg-control": causes.control(),
    }


def groups() -> list[dict[str, Any]]:
    """Return the content of a file of rules."""
    found = _groups()
    for rule in (rule for group in found for rule in group["rules"]):
        rule["expr"] = filled(rule["expr"])
    return found


def _groups() -> list[dict[str, Any]]:
    recorded = {"disagg-objectives": objectives.recordings(), "disagg-transfers": causes.recordings()}
    return [
        {"name": name, "rules": [*recorded.get(name, ()), *(alert.rule() for alert in found)]}
        for name, found in alerts().items()
    ]


def as_text() -> str:
    """Return a file of rules as Prometheus reads it."""
    return filled(as_form())


def as_form() -> str:
    """Return the same with `@ALERT@` for the limit of each alert, which the chart fills in."""
    return HEAD + "\n".join(_lines({"groups": _groups()})) + "\n"


def _lines(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return a mapping as lines of YAML, in the order that it has."""
    out = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            out += [f"{indent}{name}:", *_lines(item, f"{indent}  ")]
        elif isinstance(item, list):
            out.append(f"{indent}{name}:")
            for entry in item:
                first, *rest = _lines(entry, f"{indent}  ")
                out += [f"{indent}- {first.strip()}", *rest]
        else:
            out.append(f"{indent}{name}: {json.dumps(item, ensure_ascii=False)}")
    return out
