"""Write docs/metrics.md: every series of the four processes, from their registries."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Metric
from tests.wire import registries

HEAD = """# Metrics

Each process serves `/metrics`, as text or as OpenMetrics: routers and workers on the port named `http`, operators on
`health`. [scrape.yaml](../examples/hpa/scrape.yaml) and [podmonitor.yaml](../examples/hpa/podmonitor.yaml) scrape them,
and add `namespace`, `pod` and `disagg_deployment`, and `disagg_pool` for workers. The series of the operator have
labels of the same names for the resource that they are about, so they are scraped with `honorLabels`. Each process also
has the usual `process_*`. No label has the name of a request, user, address or pair of pods as its value.

This page is generated from the processes' registries by `make generate`; do not edit it.
"""
TITLES = {
    "router": "Routers",
    "worker": "Workers",
    "adapter": "Adapters of other engines",
    "operator": "The operator",
}
ADAPTER = """Those of the workers that are also in the table above are left out here, as far as an engine tells them.
"""
_UNITS = ("seconds_squared", "tokens_squared", "seconds", "bytes", "tokens", "blocks", "replicas", "requests")
_KINDS = {"counter": "_total", "info": "_info"}


def unit(name: str) -> str:
    """Return the unit that the name of a series ends with, or nothing."""
    bare = name.removesuffix("_total").removesuffix("_info")
    return next((u.replace("_", " ") for u in _UNITS if bare.endswith(f"_{u}")), "")


def rows(found: list[CollectorRegistry], without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the row of each metric by its name, but of those that are named."""
    labels = registries.series(found)
    families = {f.name + _KINDS.get(f.type, ""): f for registry in found for f in registry.collect()}
    return {
        name: _row(name, family, labels)
        for name, family in sorted(families.items())
        if name.startswith("disagg_") and name not in without
    }


def _row(name: str, family: Metric, labels: dict[str, frozenset[str]]) -> str:
    own = labels.get(f"{name}_bucket", labels.get(name, frozenset())) - {"le"}
    told = ", ".join(f"`{label}`" for label in sorted(own))
    meaning = family.documentation.replace("|", "\\|").rstrip(".")
    return f"| `{name}` | {family.type} | {unit(name)} | {told} | {meaning} |"


def page() -> str:
    """Return the whole page."""
    parts, seen = [HEAD], frozenset[str]()
    for process, title in TITLES.items():
        found = rows(registries.PROCESSES[process](), seen if process == "adapter" else frozenset())
        table = ["| name | type | unit | labels | meaning |", "|---|---|---|---|---|", *found.values()]
        text = ADAPTER if process == "adapter" else ""
        parts.append("\n".join([f"## {title}", "", *([text] if text else []), *table, ""]))
        seen |= found.keys()
    return "\n".join(parts)
