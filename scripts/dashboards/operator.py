"""The dashboard of the operator."""

from __future__ import annotations

from scripts.dashboards.board import NAMESPACE, Board, Kind, Panel, Query, Row, Unit, Variable
from scripts.dashboards.promql import EVERY, highest, legend, rate

from disagg_operator.status.alerts.alert import D
from disagg_wire import series as s

_POD = legend("pod")
_WHOSE = f"{legend(s.NAMESPACE)}/{legend(s.DEPLOYMENT)}"


def _of(series: str, matchers: str = "") -> str:
    return f'{series}{{{s.NAMESPACE}="${NAMESPACE}"{f",{matchers}" if matchers else ""}}}'


def _quantiles(histogram: str) -> tuple[Query, ...]:
    buckets = _of(f"{histogram}_bucket")
    return tuple(
        Query(f"histogram_quantile({share}, sum by (le) (rate({buckets}[{EVERY}])))", f"p{share * 100:g}")
        for share in (0.5, 0.99)
    )


def _loops() -> Row:
    leading = _of(s.OPERATOR_LEADING)
    return Row(
        "Reconciling",
        (
            Panel("Leader", "1 for the operator that leads: exactly one should.", Unit.NUMBER,
                  (Query(highest(_of(s.OPERATOR_LEADING), "pod"), _POD),)),
            Panel("Runs", "Reconcile runs by result.", Unit.EVENTS_PER_S,
                  (Query(rate(_of(s.OPERATOR_RECONCILES), s.RESULT), legend(s.RESULT)),), Kind.STACK),
            Panel("Duration of runs", "Of reconcile runs.", Unit.SECONDS, _quantiles(s.OPERATOR_RECONCILE_SECONDS)),
            Panel("Queue", "Resources whose run is due. It should come back to 0.", Unit.NUMBER,
                  (Query(highest(_of(s.OPERATOR_QUEUE_DEPTH), "pod"), _POD),)),
            Panel("Watch events", "By kind.", Unit.EVENTS_PER_S,
                  (Query(rate(_of(s.OPERATOR_WATCH_EVENTS), s.KIND), legend(s.KIND)),), Kind.STACK),
            Panel("Writes", "Writing requests to the API server. Without edits or scaling there are hardly any.",
                  Unit.REQUESTS_PER_S, (Query(rate(_of(s.OPERATOR_API_WRITES), "pod"), _POD),)),
            Panel("Sweeps", "Duration of reading all metrics once, where the autoscaler does so itself.",
                  Unit.SECONDS, _quantiles(s.OPERATOR_SWEEP_SECONDS)),
            Panel("CPU", "Cores that each operator uses.", Unit.NUMBER,
                  (Query(f"{rate(_of('process_cpu_seconds_total'), 'pod')} and on (pod) {leading}", _POD),)),
            Panel("Memory", "Resident memory of each operator.", Unit.BYTES,
                  (Query(f"{highest(_of('process_resident_memory_bytes'), 'pod')} and on (pod) {leading}", _POD),)),
        ),
    )  # fmt: skip


def _resources() -> Row:
    wrong = f'{s.DEPLOYMENT_CONDITION}{{status!="True",type!="Degraded"}}'
    degraded = f'{s.DEPLOYMENT_CONDITION}{{status="True",type=~"Degraded|Warning"}}'
    drains = f"sum by ({s.OUTCOME}) (increase({_of(s.OPERATOR_DRAINS)}[1h]))"
    cut = f"sum by ({s.COMPONENT}) (increase({_of(s.OPERATOR_DRAIN_CUT_REQUESTS)}[1h]))"
    return Row(
        "Resources",
        (
            Panel("Conditions that tell of something", "Those that do not hold, and Degraded and Warning, with"
                  " reasons.", Unit.NUMBER,
                  (Query(f"max by ({D}, type, reason) ({wrong} or {degraded})", "so"),), Kind.TABLE, 12,
                  may_be_empty="all conditions hold while all is well"),
            Panel("Age of edits", "How long ago a spec was edited that status does not tell of yet.", Unit.SECONDS,
                  (Query(f"max by ({D}) ({s.DEPLOYMENT_UNOBSERVED_SECONDS})", _WHOSE),), width=12, red_above=120),
            Panel("Drains", "Drains of workers and routers in the last hour, by outcome.", Unit.NUMBER,
                  (Query(drains, legend(s.OUTCOME)),), may_be_empty="only where pods were drained"),
            Panel("Requests cut off", "At the ends of drains in the last hour. Those of routers are lost.",
                  Unit.NUMBER, (Query(cut, legend(s.COMPONENT)),), red_above=0.5),
            Panel("Exchanged pools", "Rollouts for which both pools were exchanged at once, in the last hour.",
                  Unit.NUMBER, (Query(f"sum by ({D}) (increase({s.OPERATOR_EXCHANGES}[1h]))", _WHOSE),),
                  may_be_empty="only where there was no room for a second pair"),
            Panel("Versions", "What runs: operators, routers and workers.", Unit.NUMBER,
                  (Query(f"count by ({s.COMPONENT}, {s.VERSION}, {s.PYTHON}) ({s.BUILD_INFO})", "processes"),),
                  Kind.TABLE, 12),
            Panel("Wakes", "From the order to wake both pools to the first pair that serves.", Unit.SECONDS,
                  _quantiles(s.OPERATOR_WAKE_SECONDS), width=12,
                  may_be_empty="only pools that may go to zero have it"),
        ),
    )  # fmt: skip


def board() -> Board:
    return Board(
        "disagg-operator",
        "disagg / Operator",
        "The operator: whether it keeps up, what it writes, and which resources are not as they should be.",
        (Variable(NAMESPACE, s.NAMESPACE, s.OPERATOR_LEADING),),
        (_loops(), _resources()),
    )
