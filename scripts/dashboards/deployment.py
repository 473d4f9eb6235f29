"""The dashboard of one deployment: which stage takes the time, and which pool is the limit."""

from __future__ import annotations

from scripts.dashboards.board import Board, Kind, Panel, Query, Row, Unit
from scripts.dashboards.promql import EVERY, OF_ONE, OF_POOL, highest, legend, mean, of_one, quantiles, rate, total

from disagg_operator.status.alerts.objectives import AVAILABILITY, BUDGET
from disagg_wire import series as s

_SLO = "sloth_slo"


def _objective(name: str) -> Query:
    selector = of_one(s.ROUTER_OBJECTIVE_SECONDS, f'objective="{name}"')
    return Query(highest(selector), "objective")


def _objectives() -> Row:
    def missed(name: str) -> str:
        return of_one("slo:sli_error:ratio_rate3d", f'{_SLO}="{name}"')

    names = (s.TTFT, s.TPOT, AVAILABILITY)
    left = [
        Panel(f"Budget left: {name}", f"Share of the errors allowed in three days that is left for {name}.",
              Unit.SHARE, (Query(f"1 - max({missed(name)}) / {BUDGET:g}", name),),
              Kind.NUMBER, 4, 7, red_below=0)
        for name in names
    ]  # fmt: skip
    outcomes = Query(rate(of_one(s.ROUTER_GENERATIONS), s.OUTCOME), legend(s.OUTCOME))
    burns = Query(of_one("slo:sli_error:ratio_rate1h"), legend(_SLO))
    return Row(
        "What users get",
        (
            *left,
            Panel("Missed objectives", "Share of the last hour's requests that missed an objective. 14.4 times the"
                  " budget pages.", Unit.SHARE, (burns,), Kind.LINES, 6, 7, red_above=14.4 * BUDGET),
            Panel("Outcomes", "What became of the generations: all but completed and those whose client left count"
                  " against availability.", Unit.REQUESTS_PER_S, (outcomes,), Kind.STACK, 6, 7),
            Panel("Time to first token", "From arrival to the first token, with the objective.", Unit.SECONDS,
                  (*quantiles(s.ROUTER_TTFT_SECONDS), _objective(s.TTFT))),
            Panel("TTFT by stage", "Mean duration of each stage until the first token: together they are the time to"
                  " it. The tallest is where to look.", Unit.SECONDS, (_stages(),), Kind.STACK),
            Panel("Time per output token", "After the first token, with the objective.", Unit.SECONDS,
                  (*quantiles(s.ROUTER_TPOT_SECONDS), _objective(s.TPOT))),
            Panel("First to second token", "Of answers whose KV was moved in between: the pause that a slow transfer"
                  " makes.", Unit.SECONDS, quantiles(s.ROUTER_HANDOVER_SECONDS)),
            Panel("Longest gap", "Longest silence within each answer. One long stall hardly shows in the time per"
                  " token.", Unit.SECONDS, quantiles(s.ROUTER_LONGEST_GAP_SECONDS), red_above=2),
            Panel("Whole requests", "From arrival to the end, whatever became of it.", Unit.SECONDS,
                  quantiles(s.ROUTER_REQUEST_SECONDS)),
        ),
    )  # fmt: skip


def _stages() -> Query:
    names = "|".join(s.TTFT_STAGES)
    matcher = f'stage=~"{names}"'
    sums = of_one(f"{s.ROUTER_STAGE_SECONDS}_sum", matcher)
    counts = of_one(f"{s.ROUTER_STAGE_SECONDS}_count", matcher)
    return Query(mean(sums, counts, s.STAGE), legend(s.STAGE))


def _queues() -> Row:
    remote = rate(of_one(s.ROUTER_PATH_REASONS), s.PATH, s.REASON)
    return Row(
        "The way of requests",
        (
            Panel("Waiting for a pool", "Requests that wait in the routers for room.", Unit.NUMBER,
                  (Query(total(of_one(s.ROUTER_WAITING_REQUESTS), s.POOL), legend(s.POOL)),), Kind.STACK, 6),
            Panel("Running", "Requests under way.", Unit.NUMBER,
                  (Query(total(of_one(s.ROUTER_RUNNING_REQUESTS)), "running"),), width=6),
            Panel("Where prompts are prefilled", "Finished requests by path, and why: local means that decode has"
                  " prefilled by itself.", Unit.REQUESTS_PER_S,
                  (Query(remote, f"{legend(s.PATH)}: {legend(s.REASON)}"),), Kind.STACK, 6),
            Panel("Failovers", "Attempts that failed and were made again, by reason.", Unit.REQUESTS_PER_S,
                  (Query(rate(of_one(s.ROUTER_FAILOVERS), s.REASON), legend(s.REASON)),), width=6,
                  may_be_empty="no attempt fails while all is well"),
        ),
    )  # fmt: skip


def _prefill() -> Row:
    of = f'{OF_POOL}="prefill"'
    seconds, batches = of_one(s.WORKER_PREFILL_BATCH_SECONDS, of), of_one(s.WORKER_PREFILL_BATCHES, of)
    tokens = of_one(s.WORKER_PREFILL_BATCH_TOKENS, of)
    limit, most = of_one(s.PREFILL_BATCH_LIMIT_TOKENS, of), of_one(s.PREFILL_BATCH_MOST_TOKENS, of)
    sources = rate(of_one(s.WORKER_PROMPT_TOKENS_BY_SOURCE), s.SOURCE)
    return Row(
        "Prefill",
        (
            Panel("Prompt tokens", "Where the KV of prompts came from, in both pools.", Unit.TOKENS_PER_S,
                  (Query(sources, legend(s.SOURCE)),), Kind.STACK, 6),
            Panel("Waiting prompt tokens", "Queued in prefill workers.", Unit.NUMBER,
                  (Query(total(of_one(s.WORKER_WAITING_TOKENS, of)), "tokens"),), width=6),
            Panel("Batches", "Mean duration of a batch, and how much of the time prefill computes.", Unit.SECONDS,
                  (Query(mean(seconds, batches), "seconds a batch"),
                   Query(f"avg(rate({seconds}[{EVERY}]))", "busy, of each second")), width=6),
            Panel("Batch size", "Mean tokens of a batch; how many it may hold now, and how many while decode has"
                  " room.", Unit.NUMBER,
                  (Query(mean(tokens, batches), "tokens"), Query(f"min({limit})", "limit"),
                   Query(f"max({most})", "limit while decode has room")), width=6),
        ),
    )  # fmt: skip


def _decode() -> Row:
    of = f'{OF_POOL}="decode"'
    steps, seconds = of_one(s.WORKER_DECODE_STEPS, of), of_one(s.WORKER_DECODE_STEP_SECONDS, of)
    sequences = of_one(s.WORKER_DECODE_STEP_SEQUENCES, of)
    return Row(
        "Decode",
        (
            Panel("Steps", "Mean duration of a step: the least time per output token.", Unit.SECONDS,
                  (Query(mean(seconds, steps), "seconds a step"),), width=6),
            Panel("Sequences in a step", "How many answers share a step.", Unit.NUMBER,
                  (Query(mean(sequences, steps), "sequences"),), width=6),
            Panel("KV blocks", "Of all decode workers. With few free ones, requests wait for decode.", Unit.NUMBER,
                  (Query(total(of_one(s.WORKER_KV_BLOCKS, of), s.STATE), legend(s.STATE)),), Kind.STACK, 6),
            Panel("Preemptions and refusals", "Sequences put back because KV ran out, and reservations refused.",
                  Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.WORKER_PREEMPTIONS, of)), "preempted"),
                   Query(rate(of_one(s.WORKER_RESERVATIONS_REFUSED, of)), "refused")), width=6),
        ),
    )  # fmt: skip


def board() -> Board:
    return Board(
        "disagg-deployment",
        "disagg / Deployment",
        "One deployment: are users hurt, by which objective, and which of router, prefill, transfer and decode it is.",
        OF_ONE,
        (_objectives(), _queues(), _prefill(), _decode()),
    )
