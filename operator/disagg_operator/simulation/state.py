"""What the event loop works on: one row a request, one a worker, and counters; arrays only, so that numba can compile all of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

NONE, STARTING, READY, DRAINING = 0, 1, 2, 3
PENDING, DONE, DROPPED, KILLED = 0, 1, 2, 3
PODS = 512  # places for workers of one pool, those that drain included
_AGAIN = 1 << 20  # requests that may come back from dead workers, all together

# Counters, by their index in `Sim.tally`.
(
    NEXT, P_HEAD, P_TAIL, D_HEAD, D_TAIL, T_SIZE, QUEUED_TOKENS, ARRIVALS, WORK, WORK2, FIRST, TTFT_OK, TTFT_ALL, ENDED, ENDED_TOKENS,
    TPOT_OK, TPOT_ALL, GENERATED, P_BUSY_S, LOST, DROPS, LINK_FREE, LINK_BUSY_S, RETRIES, ENDED_KV,
    A_HEAD, A_TAIL, P_PLACES, D_PLACES, BATCHES, BATCH_TOKENS, BATCH_TOKENS2, STEPS, STEP_SEQUENCES, STEP_KV, STEP_S, LATE,
) = range(37)  # fmt: skip
COUNTERS = 37


class Sim(NamedTuple):
    """Everything that changes or is needed in the loop. One row a request, one a worker (p_ prefill, d_ decode)."""

    arrival_s: np.ndarray[Any, Any]
    entry_s: np.ndarray[Any, Any]  # a router is through with it: it queues for prefill
    work: np.ndarray[Any, Any]  # uncached prompt tokens, after a death what has to be computed again
    context: np.ndarray[Any, Any]  # tokens in the cache when decoding begins
    left: np.ndarray[Any, Any]  # output tokens not made yet
    output: np.ndarray[Any, Any]
    ttft_limit_s: np.ndarray[Any, Any]
    first_s: np.ndarray[Any, Any]
    last_s: np.ndarray[Any, Any]
    status: np.ndarray[Any, Any]
    queue: np.ndarray[Any, Any]
    again: np.ndarray[Any, Any]  # prompts of dead workers, computed first
    decode_queue: np.ndarray[Any, Any]
    moving_s: np.ndarray[Any, Any]  # heap of transfers by their end
    moving: np.ndarray[Any, Any]
    tally: np.ndarray[Any, Any]
    p_state: np.ndarray[Any, Any]
    p_next_s: np.ndarray[Any, Any]
    p_from: np.ndarray[Any, Any]
    p_to: np.ndarray[Any, Any]
    p_again: np.ndarray[Any, Any]  # its batch is of `again`
    p_death_s: np.ndarray[Any, Any]
    p_ready_s: np.ndarray[Any, Any]
    d_state: np.ndarray[Any, Any]
    d_next_s: np.ndarray[Any, Any]
    d_death_s: np.ndarray[Any, Any]
    d_ready_s: np.ndarray[Any, Any]
    d_limit_s: np.ndarray[Any, Any]  # a draining worker is killed then
    d_t0: np.ndarray[Any, Any]
    d_step: np.ndarray[Any, Any]
    d_batch: np.ndarray[Any, Any]
    d_kv: np.ndarray[Any, Any]
    d_reserved: np.ndarray[Any, Any]
    heap_step: np.ndarray[Any, Any]
    heap: np.ndarray[Any, Any]
    exit_s: np.ndarray[Any, Any]  # [2, PODS]: when a worker that was drained, killed or died was gone
    fixed: np.ndarray[Any, Any]  # profile and rules, see FIXED


FIXED = ("a", "b", "c", "d", "e", "f", "kv", "batch_tokens", "max_running", "tpot_s", "drop_s", "xfer_s", "link_tokens_per_s", "aligned",
         "overhead_s", "handover_s", "batch_wait_s", "batch_full_tokens", "take_in_s", "h",
         "by_deadline", "patience_s")  # fmt: skip


def entries(arrival_s: Any, front_s: float) -> Any:
    """When each request is through the routers, which together take `front_s` for one after another; the overhead counts it once."""
    if front_s <= 0:
        return arrival_s
    before_s = front_s * np.arange(len(arrival_s))
    return np.maximum.accumulate(arrival_s - before_s) + before_s


def make(arrival_s: Any, entry_s: Any, prompt: Any, cached: Any, output: Any, ttft_limit_s: Any, fixed: Any) -> Sim:
    """A simulation before its first event, without workers."""
    n, rows = len(arrival_s), int(fixed[8])
    f8, i8, i4, i1 = np.float64, np.int64, np.int32, np.int8
    count = np.zeros(COUNTERS)
    work = np.maximum(prompt - cached, 1).astype(i4)

    def inf() -> Any:
        return np.full(PODS, np.inf)

    return Sim(
        np.asarray(arrival_s, f8), np.asarray(entry_s, f8), work, np.asarray(prompt, i4).copy(), np.asarray(output, i4).copy(),
        np.asarray(output, i4),
        np.asarray(ttft_limit_s, f8), np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, i1),
        np.zeros(n, i4), np.zeros(_AGAIN, i4), np.zeros(n + _AGAIN, i4), np.zeros(n + 1), np.zeros(n + 1, i4), count,
        np.zeros(PODS, i1), inf(), np.zeros(PODS, i8), np.zeros(PODS, i8), np.zeros(PODS, i1), inf(), inf(),
        np.zeros(PODS, i1), inf(), inf(), inf(), inf(), np.zeros(PODS), np.zeros(PODS), np.zeros(PODS, i8), np.zeros(PODS),
        np.zeros(PODS), np.zeros((PODS, rows)), np.zeros((PODS, rows), i4), np.full((2, PODS), np.inf), np.asarray(fixed, f8),
    )  # fmt: skip
