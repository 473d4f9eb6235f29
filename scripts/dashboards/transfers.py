"""The dashboard of KV transfers and of the pairs of workers that make them."""

from __future__ import annotations

from scripts.dashboards.board import Board, Kind, Panel, Query, Row, Unit
from scripts.dashboards.promql import EVERY, OF_ONE, highest, legend, of_one, quantiles, rate, total

from disagg_operator.status.alerts.causes import GOODPUT
from disagg_wire import series as s

_RECEIVED = f'{s.DIRECTION}="{s.RECEIVED}"'
_NO_ENGINE = "only engines of other projects tell it, through their adapters"


def _speed() -> Row:
    busy = f"rate({of_one(s.KV_LINK_BUSY_SECONDS)}[{EVERY}])"
    moved, pod = of_one(s.KV_TRANSFER_BYTES), f"{legend('pod')} {legend(s.DIRECTION)}"
    return Row(
        "How fast KV moves",
        (
            Panel("Goodput", "Bytes of KV for each second in which a transfer is under way.", Unit.BYTES_PER_S,
                  (Query(of_one(GOODPUT), "all"),)),
            Panel("Moved", "Bytes of KV per second at each end.", Unit.BYTES_PER_S,
                  (Query(rate(moved, "pod", s.DIRECTION), pod),)),
            Panel("Link in use", "Share of the time in which a worker's link moves KV. Above 80 % the network is the"
                  " limit.", Unit.SHARE, (Query(highest(busy, "pod", s.DIRECTION), pod),), red_above=0.8),
            Panel("Duration", "From the first byte to the last, as the receiver sees it.", Unit.SECONDS,
                  quantiles(s.KV_TRANSFER_SECONDS, _RECEIVED)),
            Panel("Exposed", "The part of a transfer after prefill has computed: what the answer waits for.",
                  Unit.SECONDS, quantiles(s.KV_TRANSFER_EXPOSED_SECONDS)),
            Panel("First to second token", "The pause that users see while KV moves.", Unit.SECONDS,
                  quantiles(s.ROUTER_HANDOVER_SECONDS)),
            Panel("Not sent", "Bytes that decode had already.", Unit.BYTES_PER_S,
                  (Query(rate(of_one(s.KV_TRANSFER_SAVED_BYTES)), "saved"),)),
            Panel("Speed of interfaces", "As their drivers report it.", Unit.BYTES_PER_S,
                  (Query(highest(of_one(s.KV_INTERFACE_SPEED_BYTES), "pod", s.INTERFACE),
                         f"{legend('pod')} {legend(s.INTERFACE)}"),),
                  may_be_empty="the loopback interface and some virtual ones report no speed"),
            Panel("Transfers", "Finished transfers by what moved them, and how that is known.", Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.KV_TRANSFERS, _RECEIVED), s.TRANSPORT, s.EVIDENCE),
                         f"{legend(s.TRANSPORT)} ({legend(s.EVIDENCE)})"),), Kind.STACK),
        ),
    )  # fmt: skip


def _faults() -> Row:
    return Row(
        "Pairs and faults",
        (
            Panel("Pairs", "Pairs of a prefill and a decode worker: those that there should be, and the healthy"
                  " ones.", Unit.NUMBER, (Query(highest(of_one(s.ROUTER_PAIRS), s.STATE), legend(s.STATE)),)),
            Panel("Transports", "Healthy pairs by what moves their KV.", Unit.NUMBER,
                  (Query(highest(of_one(s.ROUTER_PAIR_TRANSPORTS), s.TRANSPORT, s.EVIDENCE),
                         f"{legend(s.TRANSPORT)} ({legend(s.EVIDENCE)})"),), Kind.STACK),
            Panel("Breakers", "Workers and pairs that routers avoid (open) or try (half open).", Unit.NUMBER,
                  (Query(total(of_one(s.ROUTER_BREAKERS), s.KIND, s.STATE), f"{legend(s.KIND)} {legend(s.STATE)}"),)),
            Panel("Failed transfers", "As each end sees them, by reason.", Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.KV_TRANSFER_FAILURES), s.DIRECTION, s.REASON),
                         f"{legend(s.DIRECTION)}: {legend(s.REASON)}"),),
                  may_be_empty="no transfer fails while all is well"),
            Panel("Oldest reservation", "How long a decode worker has held room for KV that has not come.",
                  Unit.SECONDS,
                  (Query(highest(of_one(s.WORKER_OLDEST_RESERVATION_AGE_SECONDS), "pod"), legend("pod")),),
                  red_above=60),
            Panel("Quarantined blocks", "KV blocks into which a silent prefill worker may still write.", Unit.NUMBER,
                  (Query(total(of_one(s.KV_QUARANTINED_BLOCKS), "pod"), legend("pod")),)),
        ),
    )  # fmt: skip


def _engines() -> Row:
    seconds, bytes_moved = of_one(s.ENGINE_TRANSFER_SECONDS), of_one(s.ENGINE_TRANSFER_BYTES)
    return Row(
        "Engines of other projects",
        (
            Panel("Goodput of engines", "KV bytes that engines read, for each second of their transfers.",
                  Unit.BYTES_PER_S, (Query(f"{rate(bytes_moved)} / ({rate(seconds)} > 0)", "all"),),
                  may_be_empty=_NO_ENGINE),
            Panel("Transfers of engines", "Those that succeeded, and those that failed.", Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.ENGINE_TRANSFERS)), "succeeded"),
                   Query(rate(of_one(s.ENGINE_TRANSFER_FAILURES)), "failed")), may_be_empty=_NO_ENGINE),
            Panel("Stranded hand-overs", "Given up while prefill held their KV, expired, or read too late.",
                  Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.ENGINE_HANDOVERS_STRANDED)), "stranded"),
                   Query(rate(of_one(s.ENGINE_HANDOVERS_EXPIRED)), "expired"),
                   Query(rate(of_one(s.ENGINE_LATE_READS)), "read late")), may_be_empty=_NO_ENGINE),
        ),
    )  # fmt: skip


def board() -> Board:
    return Board(
        "disagg-transfers",
        "disagg / KV transfers and pairs",
        "How fast KV moves from prefill to decode, what limits it, and which pairs cannot.",
        OF_ONE,
        (_speed(), _faults(), _engines()),
    )
