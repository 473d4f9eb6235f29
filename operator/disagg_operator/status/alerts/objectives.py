"""PURE: The budgets of errors that objectives leave, and the alerts on how fast they burn.

The names of the recorded series are those of Sloth, so that its dashboards show them.
"""

from __future__ import annotations

from dataclasses import dataclass

from disagg_operator.status.alerts.alert import PAGE, TICKET, Alert, D
from disagg_wire import series

# The share of requests that may miss their objective.
BUDGET = 0.01
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
AVAILABILITY = "availability"
# So few misses wake nobody, however few requests there were.
_LEAST_MISSES = 5
_FAILED = (series.FAILED_BEFORE_FIRST, series.FAILED_AFTER_FIRST, series.TIMED_OUT, series.SHED)
_OBJECTIVE, _OUTCOMES = series.ROUTER_OBJECTIVE_REQUESTS, series.ROUTER_GENERATIONS


@dataclass(frozen=True, slots=True)
class Burn:
    """A speed at which a budget burns, seen in a long window and still in a short one."""

    long: str
    short: str
    times: float
    """How much faster than it may."""
    lasting: str
    severity: str


# After the SRE workbook.
BURNS = (
    Burn("1h", "5m", 14.4, "2m", PAGE),
    Burn("6h", "30m", 6.0, "15m", PAGE),
    Burn("1d", "2h", 3.0, "1h", TICKET),
    Burn("3d", "6h", 1.0, "3h", TICKET),
)


def selectors() -> dict[str, tuple[str, str]]:
    """Return for each objective what counts as missed, and what counts at all.

    Who leaves before an answer is over says nothing of availability.
    """
    found = {
        name: (f'{_OBJECTIVE}{{objective="{name}",within="false"}}', f'{_OBJECTIVE}{{objective="{name}"}}')
        for name in (series.TTFT, series.TPOT)
    }
    failed = "|".join(_FAILED)
    bad = f'{_OUTCOMES}{{outcome=~"{failed}"}}'
    counted = f'{_OUTCOMES}{{outcome=~"{series.COMPLETED}|{failed}"}}'
    return found | {AVAILABILITY: (bad, counted)}


def recordings() -> list[dict[str, object]]:
    """Return the rules that record the share of misses in each window, and their number."""
    rules: list[dict[str, object]] = []
    for slo, (bad, counted) in selectors().items():
        labels = {"sloth_slo": slo}
        for window in WINDOWS:
            share = f"sum by ({D}) (rate({bad}[{window}])) / (sum by ({D}) (rate({counted}[{window}])) > 0)"
            rules.append({"record": f"slo:sli_error:ratio_rate{window}", "expr": share, "labels": labels})
        for burn in BURNS:
            misses = f"sum by ({D}) (increase({bad}[{burn.long}]))"
            rules.append({"record": f"slo:sli_error:increase{burn.long}", "expr": misses, "labels": labels})
    return rules


def alerts(budget: float = BUDGET) -> list[Alert]:
    """Return the alerts on each burn. A share above which none could fire is cut off."""
    found = []
    for burn in BURNS:
        limit = min(0.9, round(burn.times * budget, 6))
        expression = (
            f"slo:sli_error:ratio_rate{burn.long} > {limit} and slo:sli_error:ratio_rate{burn.short} > {limit}"
            f" and slo:sli_error:increase{burn.long} >= {_LEAST_MISSES}"
        )
        found.append(
            Alert(
                "BudgetBurn",
                expression,
                burn.lasting,
                "{{ $labels.sloth_slo }} misses its objective too often",
                f"{{{{ $value | humanizePercentage }}}} of the requests of the last {burn.long} missed the objective"
                f" {{{{ $labels.sloth_slo }}}}, {burn.times:g} times as many as it allows.",
                burn.severity,
                burn.long,
            )
        )
    return found
