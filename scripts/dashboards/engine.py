"""The dashboard of the engines in the workers."""

from __future__ import annotations

from scripts.dashboards.board import Board, Kind, Panel, Query, Row, Unit
from scripts.dashboards.promql import EVERY, OF_ONE, OF_POOL, highest, legend, of_one, rate, total

from disagg_wire import series as s

_POD = legend("pod")
_WORKER = f'{OF_POOL}!=""'


def _work() -> Row:
    idle = f"time() - max by (pod) ({of_one(s.WORKER_PROGRESS_TIMESTAMP_SECONDS)})"
    return Row(
        "Work",
        (
            Panel("Running", "Requests that each worker computes.", Unit.NUMBER,
                  (Query(total(of_one(s.WORKER_RUNNING_REQUESTS), "pod"), _POD),)),
            Panel("Queued", "Requests that wait in a worker.", Unit.NUMBER,
                  (Query(total(of_one(s.WORKER_WAITING_REQUESTS), "pod"), _POD),)),
            Panel("Without progress", "Time since the engine's loop last ended a step or had nothing to do.",
                  Unit.SECONDS, (Query(idle, _POD),), red_above=30),
            Panel("Steps", "Forward passes by kind.", Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.WORKER_STEPS), s.KIND), legend(s.KIND)),), Kind.STACK),
            Panel("Time of steps", "Seconds of each second, in the network and outside it, of all workers.",
                  Unit.NUMBER, (Query(rate(of_one(s.WORKER_STEP_SECONDS), s.PART), legend(s.PART)),), Kind.STACK),
            Panel("Tokens", "Prompt tokens computed, and tokens generated, by worker.", Unit.TOKENS_PER_S,
                  (Query(rate(of_one(s.WORKER_PROMPT_TOKENS), "pod"), f"{_POD} prompt"),
                   Query(rate(of_one(s.WORKER_GENERATED_TOKENS), "pod"), f"{_POD} generated"))),
        ),
    )  # fmt: skip


def _memory() -> Row:
    used = f"{total(of_one(s.WORKER_KV_TOKENS), 'pod')} / {total(of_one(s.WORKER_KV_CAPACITY_TOKENS), 'pod')}"
    hits, missed = of_one(s.WORKER_CACHED_TOKENS), of_one(s.WORKER_PROMPT_TOKENS)
    share = f"{rate(hits, OF_POOL)} / ({rate(hits, OF_POOL)} + {rate(missed, OF_POOL)} > 0)"
    return Row(
        "Memory and cache",
        (
            Panel("KV cache in use", "Share of each worker's KV cache that is in use.", Unit.SHARE,
                  (Query(used, _POD),), red_above=0.95),
            Panel("Prompt tokens found in the cache", "Share of the prompt tokens that need not be computed.",
                  Unit.SHARE, (Query(share, legend(OF_POOL)),)),
            Panel("KV in host memory", "Evicted KV that is kept.", Unit.BYTES,
                  (Query(total(of_one(s.WORKER_HOST_CACHE_BYTES), "pod"), _POD),)),
            Panel("Preemptions", "Sequences put back because KV blocks ran out.", Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.WORKER_PREEMPTIONS), "pod"), _POD),)),
            Panel("Late first tokens", "First tokens that came after they were due.", Unit.EVENTS_PER_S,
                  (Query(rate(of_one(s.WORKER_LATE_PROMPTS), "pod"), _POD),)),
            Panel("Memory of processes", "Resident memory of workers.", Unit.BYTES,
                  (Query(total(of_one("process_resident_memory_bytes", _WORKER), "pod"), _POD),)),
        ),
    )  # fmt: skip


def _processes() -> Row:
    cpu = f"sum by (pod) (rate({of_one('process_cpu_seconds_total', _WORKER)}[{EVERY}]))"
    return Row(
        "Processes",
        (
            Panel("CPU", "Cores that each worker uses.", Unit.NUMBER, (Query(cpu, _POD),)),
            Panel("Time to load", "How long each worker took to get its model, by phase.", Unit.SECONDS,
                  (Query(highest(of_one(s.WORKER_LOAD_SECONDS), "pod", s.PHASE), f"{_POD} {legend(s.PHASE)}"),)),
            Panel("Workers", "What each runs.", Unit.NUMBER,
                  (Query(f"max by (pod, role, model, transport, {s.INTERFACE}) ({of_one(s.WORKER_INFO)})", "up"),),
                  Kind.TABLE),
        ),
    )  # fmt: skip


def board() -> Board:
    return Board(
        "disagg-engine",
        "disagg / Engine",
        "The engines in the workers of one deployment: work, memory, caches and processes.",
        OF_ONE,
        (_work(), _memory(), _processes()),
    )
