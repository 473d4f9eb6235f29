"""PURE: The form of an alert, and the words of its expression."""

from __future__ import annotations

from dataclasses import dataclass

from disagg_wire import series

# The labels of a DisaggDeployment, on every alert that is about one.
D = f"{series.NAMESPACE}, {series.DEPLOYMENT}"
# As scrape configurations name the pool of a worker, whose own series do not know it.
OF_POOL = "disagg_pool"
PAGE, TICKET = "critical", "warning"
RUNBOOKS = "docs/runbooks"
_OF = "{{ $labels.namespace }}/{{ $labels.disagg_deployment }}"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert, and what whoever gets it reads first."""

    name: str
    """Its name, without the prefix that all of them have."""
    expression: str
    """In PromQL: what holds while the fault lasts."""
    lasting: str
    """How long it must hold."""
    summary: str
    """What is wrong, in a few words."""
    description: str
    """What it means, in a sentence; it may have templates."""
    severity: str = TICKET
    """Whether somebody is woken."""
    window: str = ""
    """The window that it looks at, where others of its name look at others."""
    about_one: bool = True
    """Whether it is about one DisaggDeployment, whose name it then has."""

    @property
    def full_name(self) -> str:
        return f"Disagg{self.name}"

    def rule(self) -> dict[str, object]:
        """Return it as it stands in a file of rules."""
        summary = f"{_OF}: {self.summary}" if self.about_one else self.summary
        return {
            "alert": self.full_name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity} | ({"window": self.window} if self.window else {}),
            "annotations": {
                "summary": summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.full_name}.md",
            },
        }


def rate(selector: str) -> str:
    """Return the rate of a counter of each deployment in the last five minutes."""
    return f"sum by ({D}) (rate({selector}[5m]))"


def total(selector: str) -> str:
    """Return the sum of a gauge of each deployment."""
    return f"sum by ({D}) ({selector})"


def highest(selector: str, *more: str) -> str:
    """Return the highest value of each deployment, and of each value of the labels in `more`."""
    return f"max by ({', '.join((D, *more))}) ({selector})"


def quantile(share: float, histogram: str) -> str:
    """Return a quantile of a histogram of each deployment in the last five minutes."""
    return f"histogram_quantile({share}, sum by (le, {D}) (rate({histogram}_bucket[5m])))"


def condition(matchers: str) -> str:
    """Return 1 for each deployment with such a condition, with its reason."""
    return f"{highest(f'{series.DEPLOYMENT_CONDITION}{{{matchers}}}', series.REASON)} == 1"
