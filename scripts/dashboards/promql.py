"""The words of the dashboards' queries."""

from __future__ import annotations

from scripts.dashboards.board import DEPLOYMENT, NAMESPACE, Query, Variable

from disagg_wire import series as s

EVERY = "$__rate_interval"
_ONE = f'{s.NAMESPACE}="${NAMESPACE}",{s.DEPLOYMENT}="${DEPLOYMENT}"'
# As scrape configurations name the pool of a worker.
OF_POOL = "disagg_pool"
OF_ONE = (
    Variable(NAMESPACE, s.NAMESPACE, s.DEPLOYMENT_CONDITION),
    Variable(DEPLOYMENT, s.DEPLOYMENT, f'{s.DEPLOYMENT_CONDITION}{{{s.NAMESPACE}="${NAMESPACE}"}}'),
)


def of_one(series: str, matchers: str = "") -> str:
    """Return a selector of the series of the chosen deployment."""
    return f"{series}{{{_ONE}{f',{matchers}' if matchers else ''}}}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def total(selector: str, *labels: str) -> str:
    return f"sum{_by(labels)} ({selector})"


def highest(selector: str, *labels: str) -> str:
    return f"max{_by(labels)} ({selector})"


def rate(selector: str, *labels: str) -> str:
    """Return how fast counters grow, summed."""
    return f"sum{_by(labels)} (rate({selector}[{EVERY}]))"


def mean(sums: str, counts: str, *labels: str) -> str:
    """Return the mean of what two counters have added up since the last point."""
    return f"{rate(sums, *labels)} / ({rate(counts, *labels)} > 0)"


def quantiles(histogram: str, matchers: str = "", shares: tuple[float, ...] = (0.5, 0.95, 0.99)) -> tuple[Query, ...]:
    """Return a query for each quantile of a histogram of the chosen deployment."""
    buckets = of_one(f"{histogram}_bucket", matchers)
    return tuple(
        Query(f"histogram_quantile({share}, sum by (le) (rate({buckets}[{EVERY}])))", f"p{share * 100:g}")
        for share in shares
    )


def legend(label: str) -> str:
    return f"{{{{{label}}}}}"
