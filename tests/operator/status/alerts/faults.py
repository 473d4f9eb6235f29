"""Series of a deployment that is healthy, and what each fault makes of them, minute by minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

# When the fault begins and ends, and the end of all, in minutes. An alert that compares with what
# was an hour before has seen some of it by then, and what looks back an hour is quiet at the end.
BEGINS, ENDS, OVER = 70, 130, 200

Value = float | None
"""None is a series that is not there."""


@dataclass(frozen=True)
class Line:
    """A gauge, or a counter with what it grows by in a minute; `faulty` while the fault lasts."""

    healthy: Value
    faulty: Value = field(default=-1.0)
    counter: bool = False
    clock: bool = False
    """Whether the value is the time itself, which stands still during a fault that is 0."""

    def values(self, ends: int) -> Iterator[str]:
        total, now = 0.0, 0.0
        for minute in range(OVER + 1):
            broken = BEGINS <= minute < ends and self.faulty != -1.0
            value = self.faulty if broken else self.healthy
            if value is None:
                yield "_"
                continue
            total += value if self.counter else 0.0
            now = now if self.clock and broken else minute * 60.0
            yield f"{total if self.counter else now if self.clock else value:.10g}"


def gauge(value: Value) -> Line:
    return Line(value)


def counter(per_minute: Value) -> Line:
    return Line(per_minute, counter=True)


def healthy(namespace: str) -> dict[str, Line]:
    """Return the series of a deployment `chat` of a namespace."""
    found: dict[str, Line] = {}

    def add(name: str, line: Line, **labels: str) -> None:
        own = {"namespace": namespace, "disagg_deployment": "chat"} | labels
        found[f"disagg_{name}{{{','.join(f'{k}={v!r}' for k, v in own.items())}}}".replace("'", '"')] = line

    for kind, reason in (("Available", "Ready"), ("RouterReady", "PodsReady"), ("KVTransferReady", "PairsHealthy")):
        add("deployment_condition", gauge(1), type=kind, status="True", reason=reason)
    router, prefill, decode = (
        {"pod": "r0"},
        {"pod": "p0", "disagg_pool": "prefill"},
        {"pod": "d0", "disagg_pool": "decode"},
    )
    add("router_running_requests", gauge(1), **router)
    for outcome, n in (("completed", 600), ("shed", 0), ("failed_before_first", 0), ("left_before_first", 3)):
        add("router_generations_total", counter(n), **router, outcome=outcome)
    for objective, limit_s in (("ttft", 1.0), ("tpot", 0.05)):
        add("router_objective_seconds", gauge(limit_s), **router, objective=objective)
        for within, n in (("true", 600), ("false", 0)):
            add("router_objective_requests_total", counter(n), **router, objective=objective, within=within)
    for le in ("0.05", "0.5", "2.0", "10.0", "+Inf"):
        add("router_longest_gap_seconds_bucket", counter(600), **router, le=le)
        add("router_handover_seconds_bucket", counter(600), **router, le=le)
    add("router_failovers_total", counter(0), **router, reason="worker_lost")
    add("router_failovers_total", counter(90), **router, reason="invalid_request")
    add("router_arrivals_total", counter(600), **router)
    for state in ("expected", "healthy"):
        add("router_pairs", gauge(4), **router, state=state)
    for path, reason, n in (
        ("remote", "shipped", 600),
        ("local", "few_tokens_missing", 300),
        ("local", "no_prefill_worker", 0),
    ):
        add("router_path_reasons_total", counter(n), **router, path=path, reason=reason)
    for pool in ("prefill", "decode"):
        add("router_waiting_requests", gauge(0), **router, pool=pool)
        add("router_oldest_poll_age_seconds", gauge(0.2), **router, pool=pool)
        add("autoscaler_blind", gauge(0), pool=pool)
        for limit in ("max", "budget", "cluster", "objective"):
            add("autoscaler_limited", gauge(0), pool=pool, limit=limit)
        for direction in ("up", "down"):
            add("operator_scalings_total", counter(0), pool=pool, direction=direction)
    _transfers(add, prefill, decode)
    for worker in (prefill, decode):
        add("worker_progress_timestamp_seconds", Line(0, clock=True), **worker)
        add("worker_running_requests", gauge(3), **worker)
        add("worker_waiting_tokens", gauge(100), **worker)
        add("worker_prompt_tokens_total", counter(60_000), **worker)
        for state, n in (("free", 500), ("used", 500), ("leased", 0)):
            add("worker_kv_blocks", gauge(n), **worker, state=state)
    for name in ("limit", "most"):
        add(f"prefill_batch_{name}_tokens", gauge(8192), **prefill)
        add(f"prefill_batch_{name}_tokens", gauge(0), **decode)
    add("deployment_unobserved_seconds", gauge(0))
    return found


def _transfers(add: Callable[..., None], prefill: dict[str, str], decode: dict[str, str]) -> None:
    add("kv_transfer_failures_total", counter(0), **decode, direction="received", reason="transfer_failed")
    add("kv_transfer_bytes_total", counter(6e9), **decode, direction="received")
    for direction, worker in (("received", decode), ("sent", prefill)):
        add("kv_transfer_seconds_count", counter(600), **worker, direction=direction)
        add("kv_transfer_seconds_sum", counter(6), **worker, direction=direction)
        add("kv_link_busy_seconds_total", counter(6), **worker, direction=direction)
    add("kv_transfer_exposed_seconds_sum", counter(1), **prefill)
    add("worker_oldest_reservation_age_seconds", gauge(0.1), **decode)


CLUSTER = {
    'disagg_build_info{component="operator",namespace="disagg",pod="o0"}': gauge(1),
    'disagg_operator_drain_cut_requests_total{component="router",namespace="disagg"}': counter(0),
    'disagg_operator_drain_cut_requests_total{component="decode",namespace="disagg"}': counter(1),
}
NEW = "+"
"""Begins a key of a series that is there only during the fault."""


@dataclass(frozen=True)
class Fault:
    """What a fault changes: values by the beginning of series, with parts of their labels."""

    changes: Mapping[str, Value]
    after: int
    """How many minutes later its alert is to be there at the latest."""
    lasts: int
    """The alert's own `for`, before which it is not to be there."""


def changed(key: str, changes: Mapping[str, Value]) -> Value:
    """Return the value of a series during a fault, or -1 if it is as before."""
    name, _, labels = key.partition("{")
    for wanted, value in changes.items():
        parts = wanted.removeprefix(NEW).split()
        if name == f"disagg_{parts[0]}" and all(part in labels for part in parts[1:]):
            return value
    return -1.0


_COND = 'deployment_condition{namespace="NS",disagg_deployment="chat",'
FAULTS: dict[str, Fault] = {
    "NotServing": Fault({f'{NEW}{_COND}type="Available",status="False",reason="NoPair"}}': 1}, 4, 2),
    "Shedding": Fault({'router_generations_total "shed"': 30}, 10, 5),
    "StreamsStall": Fault(
        {'router_longest_gap_seconds_bucket le="2.0"': 580, 'router_longest_gap_seconds_bucket "0.': 580}, 10, 5
    ),
    "Failovers": Fault({'router_failovers_total "worker_lost"': 60}, 20, 10),
    "DrainLostRequests": Fault({'operator_drain_cut_requests_total "router"': 1}, 3, 0),
    "PairsDown": Fault({'router_pairs "healthy"': 3}, 10, 5),
    "TransportFallback": Fault(
        {f'{NEW}{_COND}type="KVTransferReady",status="False",reason="TransportFallback"}}': 1}, 20, 10
    ),
    "TransferFailing": Fault({"kv_transfer_failures_total": 30}, 10, 5),
    "TransferSlow": Fault({'kv_transfer_seconds_sum "received"': 60}, 20, 10),
    "HandoverSlow": Fault({'router_handover_seconds_bucket "0.': 300}, 20, 10),
    "LinkSaturated": Fault({'kv_link_busy_seconds_total "received"': 57, "kv_transfer_exposed_seconds_sum": 5}, 20, 10),
    "NotDisaggregating": Fault(
        {'router_path_reasons_total "no_prefill_worker"': 600, 'router_path_reasons_total "shipped"': 0}, 20, 10
    ),
    "LeasesHeld": Fault({"worker_oldest_reservation_age_seconds": 90}, 4, 2),
    "PrefillBacklog": Fault({'worker_waiting_tokens "p0"': 5000}, 10, 5),
    "DecodeFull": Fault(
        {
            'router_waiting_requests "decode"': 9,
            'worker_kv_blocks "d0" "free"': 10,
            'worker_kv_blocks "d0" "used"': 990,
        },
        10,
        5,
    ),
    "PrefillHeldBack": Fault({'prefill_batch_limit_tokens "p0"': 2048}, 20, 10),
    "WorkerUnheard": Fault({'router_oldest_poll_age_seconds "decode"': 30}, 3, 1),
    "EngineHung": Fault({'worker_progress_timestamp_seconds "d0"': 0}, 4, 1),
    "RolloutStuck": Fault({f'{NEW}{_COND}type="DecodeReady",status="False",reason="ImagePull"}}': 1}, 20, 10),
    "ScalerBlind": Fault({'autoscaler_blind "decode"': 1}, 20, 10),
    "ScalerLimited": Fault(
        {'autoscaler_limited "decode" "max"': 1, 'router_objective_requests_total "tpot" "false"': 32}, 50, 15
    ),
    "ScalerFlaps": Fault({'operator_scalings_total "decode"': 0.2}, 45, 0),
    "MetricsMissing": Fault({"router_running_requests": None}, 26, 10),
    "OperatorDown": Fault({"build_info": None}, 26, 10),
    "EditsIgnored": Fault({"deployment_unobserved_seconds": 200}, 10, 5),
}


# Those that are about no deployment.
OF_CLUSTER = ("OperatorDown", "DrainLostRequests")
HEALTHY = "healthy"


def series(faults: Mapping[str, Fault], ends: int = ENDS) -> list[dict[str, str]]:
    """Return the input series of a test: a deployment for each fault, in a namespace of its name,
    and one without.
    """
    lines: dict[str, Line] = {}
    of_all = {key: value for name in OF_CLUSTER if name in faults for key, value in faults[name].changes.items()}
    for key, line in CLUSTER.items():
        lines[key] = Line(line.healthy, changed(key, of_all), line.counter, line.clock)
    for name, fault in faults.items():
        if name in OF_CLUSTER:
            continue
        for key, line in healthy(namespace(name)).items():
            lines[key] = Line(line.healthy, changed(key, fault.changes), line.counter, line.clock)
        for key, value in fault.changes.items():
            if key.startswith(NEW):
                lines[f"disagg_{key.removeprefix(NEW).replace('NS', namespace(name))}"] = Line(None, value)
    lines |= healthy(namespace(HEALTHY))
    return [{"series": key, "values": " ".join(line.values(ends))} for key, line in lines.items()]


def namespace(fault: str) -> str:
    """Return the namespace of a fault's deployment; no part of a change is its name."""
    return f"of-{fault.lower()}"
