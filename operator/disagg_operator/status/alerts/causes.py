"""PURE: The alerts on causes: what is wrong where, and what goes wrong next."""

from __future__ import annotations

from disagg_operator.status.alerts.alert import OF_POOL, PAGE, Alert, D, condition, highest, quantile, rate, total
from disagg_operator.status.alerts.limits import limit
from disagg_wire import series as s

GOODPUT = "disagg:kv_transfer_goodput_bytes:rate5m"
_TPOT = highest(f'{s.ROUTER_OBJECTIVE_SECONDS}{{objective="tpot"}}')
_TTFT = highest(f'{s.ROUTER_OBJECTIVE_SECONDS}{{objective="ttft"}}')
_STUCK = "ProgressDeadlineExceeded|ImagePull|CrashLoop|PodConfig|InsufficientCapacity"
_POOL = "{{ $labels.pool }}"


def recordings() -> list[dict[str, object]]:
    """Return the rules that record what several alerts need, or what takes long to compute."""
    received = f'{s.KV_TRANSFER_SECONDS}_sum{{direction="received"}}'
    moved = rate(f'{s.KV_TRANSFER_BYTES}{{direction="received"}}')
    return [{"record": GOODPUT, "expr": f"{moved} / ({rate(received)} > 0)"}]


def serving() -> list[Alert]:
    """Return the alerts on what users get."""
    shed = f'{s.ROUTER_GENERATIONS}{{outcome="shed"}}'
    faults = f'{s.ROUTER_FAILOVERS}{{reason!~"invalid_request|prompt_too_long"}}'
    lost = f'{s.OPERATOR_DRAIN_CUT_REQUESTS}{{component="router"}}'
    return [
        Alert(
            "NotServing", condition('type="Available",status="False",reason!="Suspended"'), "2m", "nobody is served",
            "No request can be answered end to end: {{ $labels.reason }}.", PAGE,
        ),
        Alert(
            "Shedding", f"{rate(shed)} > {limit('Shedding')} * {rate(s.ROUTER_GENERATIONS)}", "5m",
            "requests are refused for want of room", "{{ $value | humanize }} requests per second get a 429.", PAGE,
        ),
        Alert(
            "StreamsStall", f"{quantile(0.99, s.ROUTER_LONGEST_GAP_SECONDS)} > {limit('StreamsStall')}",
            "5m", "answers fall silent",
            "One in a hundred answers has a gap of {{ $value | humanizeDuration }} between two tokens.",
        ),
        Alert(
            "Failovers", f"{rate(faults)} > {limit('Failovers')} * {rate(s.ROUTER_ARRIVALS)}",
            "10m", "retries hide a fault",
            "{{ $value | humanize }} attempts per second fail and are made again.",
        ),
        Alert(
            "DrainLostRequests",
            f"sum by ({s.COMPONENT}) (increase({lost}[15m])) > 0", "0m",
            "requests were lost at the end of routers",
            "Routers that ended cut off {{ $value | humanize }} requests in 15 minutes.", about_one=False,
        ),
    ]  # fmt: skip


def transfers() -> list[Alert]:
    """Return the alerts on the way of KV from prefill to decode."""
    expected, healthy = (highest(f'{s.ROUTER_PAIRS}{{state="{state}"}}') for state in ("expected", "healthy"))
    failures, done = rate(s.KV_TRANSFER_FAILURES), rate(f'{s.KV_TRANSFER_SECONDS}_count{{direction="received"}}')
    busy = highest(f"rate({s.KV_LINK_BUSY_SECONDS}[5m])", "pod", s.DIRECTION)
    exposed = rate(f"{s.KV_TRANSFER_EXPOSED_SECONDS}_sum")
    sent = rate(f'{s.KV_TRANSFER_SECONDS}_sum{{direction="sent"}}')
    alone = rate(f'{s.ROUTER_PATH_REASONS}{{reason="no_prefill_worker"}}')
    return [
        Alert(
            "PairsDown", f"{expected} > {healthy}", "5m", "some pairs cannot move KV",
            "A prefill and a decode worker that should be a pair do not reach each other.",
        ),
        Alert(
            "TransportFallback", condition('reason="TransportFallback",type="KVTransferReady"'), "10m",
            "KV goes over TCP and not over RDMA", "RDMA was asked for, and KV is moved by something slower.",
        ),
        Alert(
            "TransferFailing", f"{failures} > {limit('TransferFailing')} * {done}", "5m", "KV transfers break off",
            "{{ $value | humanize }} transfers per second fail.",
        ),
        Alert(
            "TransferSlow", f"{GOODPUT} < {limit('TransferSlow')} * avg_over_time({GOODPUT}[1d] offset 1h)", "10m",
            "KV moves slower than on the day before", "A transfer moves {{ $value | humanize }}B per second.",
        ),
        Alert(
            "HandoverSlow", f"{quantile(0.95, s.ROUTER_HANDOVER_SECONDS)} > {limit('HandoverSlow')} * {_TPOT}", "10m",
            "answers pause after their first token",
            "The second token comes {{ $value | humanizeDuration }} after the first.",
        ),
        Alert(
            "LinkSaturated", f"{busy} > {limit('LinkSaturated')} and on ({D}) {exposed} > 0.5 * {sent}",
            "10m", "the network limits KV",
            "{{ $labels.pod }} uses its link {{ $value | humanizePercentage }} of the time ({{ $labels.direction }}).",
        ),
        Alert(
            "NotDisaggregating", f"{alone} > {limit('NotDisaggregating')} * {rate(s.ROUTER_PATH_REASONS)}",
            "10m", "decode prefills by itself",
            "{{ $value | humanize }} requests per second found no prefill worker.",
        ),
        Alert(
            "LeasesHeld", f"{highest(s.WORKER_OLDEST_RESERVATION_AGE_SECONDS, 'pod')} > {limit('LeasesHeld')}", "2m",
            "KV blocks are held for nothing",
            "{{ $labels.pod }} has waited {{ $value | humanizeDuration }} for KV that does not come.",
        ),
    ]  # fmt: skip


def pools() -> list[Alert]:
    """Return the alerts on the workers of each role."""
    waiting = total(f'{s.WORKER_WAITING_TOKENS}{{{OF_POOL}="prefill"}}')
    computed = rate(f'{s.WORKER_PROMPT_TOKENS}{{{OF_POOL}="prefill"}}')
    free = total(f'{s.WORKER_KV_BLOCKS}{{{OF_POOL}="decode",state="free"}}')
    blocks = total(f'{s.WORKER_KV_BLOCKS}{{{OF_POOL}="decode"}}')
    queued = total(f'{s.ROUTER_WAITING_REQUESTS}{{pool="decode"}}')
    of_prefill = f'{{{OF_POOL}="prefill"}}'
    share = f"{s.PREFILL_BATCH_LIMIT_TOKENS}{of_prefill} / ({s.PREFILL_BATCH_MOST_TOKENS}{of_prefill} > 0)"
    stuck = f'status!="True",reason=~"{_STUCK}"'
    silent = f"time() - {s.WORKER_PROGRESS_TIMESTAMP_SECONDS} > {limit('EngineHung')}"
    return [
        Alert(
            "PrefillBacklog", f"{waiting} > {limit('PrefillBacklog')} * {_TTFT} * {computed}",
            "5m", "prompts wait longer than they may",
            "{{ $value | humanize }} prompt tokens wait, more than prefill computes in twice the objective.",
        ),
        Alert(
            "DecodeFull", f"{queued} > 0 and {free} < {limit('DecodeFull')} * {blocks}",
            "5m", "decode has no KV memory left",
            "{{ $value | humanize }} requests wait for room in decode.",
        ),
        Alert(
            "PrefillHeldBack", f"min by ({D}) ({share}) < {limit('PrefillHeldBack')}",
            "10m", "decode holds prefill back",
            "Prefill may use {{ $value | humanizePercentage }} of its batches, since decode has little room.",
        ),
        Alert(
            "WorkerUnheard", f"{highest(s.ROUTER_OLDEST_POLL_AGE_SECONDS, s.POOL)} > {limit('WorkerUnheard')}", "1m",
            f"a worker of {_POOL} is silent", "A router has not heard of it for {{ $value | humanizeDuration }}.",
        ),
        Alert(
            "EngineHung", f"{silent} and on (namespace, pod) {s.WORKER_RUNNING_REQUESTS} > 0", "1m",
            "an engine stands still", "{{ $labels.pod }} answers, but its engine has done nothing for"
            " {{ $value | humanizeDuration }} although it has requests.", PAGE,
        ),
        Alert(
            "RolloutStuck",
            condition(stuck), "10m", "new pods do not come", "The pods of a pool do not start: {{ $labels.reason }}.",
        ),
    ]  # fmt: skip


def control() -> list[Alert]:
    """Return the alerts on the operator and the autoscaler."""
    late = highest("slo:sli_error:ratio_rate6h")
    each = f"sum by ({D}, {s.POOL}, {s.DIRECTION}) (increase({s.OPERATOR_SCALINGS}[1h]))"
    routed = highest(f'{s.DEPLOYMENT_CONDITION}{{type="RouterReady",status="True"}}')
    return [
        Alert(
            "ScalerBlind", f"{highest(s.AUTOSCALER_BLIND, s.POOL)} == 1", "10m", f"{_POOL} is not scaled",
            "Its metrics are missing, and the replicas stay as they are.",
        ),
        Alert(
            "ScalerLimited", f"{highest(s.AUTOSCALER_LIMITED, s.POOL, s.LIMIT)} == 1 and on ({D}) {late} > 0.01", "15m",
            f"{_POOL} is too small", "It stands at its limit ({{ $labels.limit }}) while objectives are missed.",
        ),
        Alert(
            "ScalerFlaps", f"min by ({D}, {s.POOL}) ({each}) > {limit('ScalerFlaps')}",
            "0m", f"{_POOL} is scaled to and fro",
            "It was scaled up and down at least {{ $value | humanize }} times each in an hour.",
        ),
        Alert(
            "MetricsMissing", f"{routed} == 1 unless on ({D}) {s.ROUTER_RUNNING_REQUESTS}", "10m",
            "its metrics are not scraped", "Its routers are ready, and Prometheus has nothing of them.",
        ),
        Alert(
            "OperatorDown", f'absent({s.BUILD_INFO}{{component="operator"}})', "10m",
            "no operator of disagg is scraped",
            "Nothing is reconciled or scaled, or nobody sees it.", PAGE, about_one=False,
        ),
        Alert(
            "EditsIgnored", f"{highest(s.DEPLOYMENT_UNOBSERVED_SECONDS)} > {limit('EditsIgnored')}",
            "5m", "an edit is not carried out",
            "The spec was edited {{ $value | humanizeDuration }} ago, and status does not tell of it.",
        ),
    ]  # fmt: skip
