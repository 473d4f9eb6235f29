"""The event loop, compiled by numba: prefill batches, decode steps, hand-overs, deaths. `cluster` scales and reads the counters.

A decode worker's steps are not simulated one by one. Between two changes of its batch the duration of step i is
`d + e*B + f*(K + i*B)`, so times follow from a quadratic; a worker's state is kept as of its last batch boundary `d_t0`, which may lie
in the future of the clock: who arrives inside a step joins at its end. That is how engines work (`aligned`). The benchmark of policies
lets a sequence join at once and make tokens at the rate of one a step, fractions included.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

NONE, STARTING, READY, DRAINING = 0, 1, 2, 3
PENDING, DONE, DROPPED, KILLED = 0, 1, 2, 3
PODS = 512  # places for workers of one pool, those that drain included
_AGAIN = 1 << 20  # requests that may come back from dead workers, all together

# Counters, by their index in `Sim.tally`.
(
    NEXT, P_HEAD, P_TAIL, D_HEAD, D_TAIL, T_SIZE, QUEUED_TOKENS, ARRIVALS, WORK, WORK2, FIRST, TTFT_OK, TTFT_ALL, ENDED, ENDED_TOKENS,
    TPOT_OK, TPOT_ALL, GENERATED, P_BUSY_S, LOST, DROPS, LINK_FREE, LINK_BUSY_S, RETRIES, ENDED_KV,
    A_HEAD, A_TAIL, P_PLACES, D_PLACES,
) = range(29)  # fmt: skip
COUNTERS = 29

njit: Any = numba.njit(cache=True, fastmath=False)


class Sim(NamedTuple):
    """Everything that changes or is needed in the loop. One row a request, one a worker (p_ prefill, d_ decode)."""

    arrival_s: np.ndarray[Any, Any]
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


FIXED = ("a", "b", "c", "d", "e", "f", "kv", "batch_tokens", "max_running", "tpot_s", "drop_s", "xfer_s", "link_tokens_per_s", "aligned")


def make(arrival_s: Any, prompt: Any, cached: Any, output: Any, ttft_limit_s: Any, fixed: Any) -> Sim:
    """A simulation before its first event, without workers."""
    n, rows = len(arrival_s), int(fixed[8])
    f8, i8, i4, i1 = np.float64, np.int64, np.int32, np.int8
    count = np.zeros(COUNTERS)
    work = np.maximum(prompt - cached, 1).astype(i4)

    def inf() -> Any:
        return np.full(PODS, np.inf)

    return Sim(
        np.asarray(arrival_s, f8), work, np.asarray(prompt, i4).copy(), np.asarray(output, i4).copy(), np.asarray(output, i4),
        np.asarray(ttft_limit_s, f8), np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, i1),
        np.zeros(n, i4), np.zeros(_AGAIN, i4), np.zeros(n + _AGAIN, i4), np.zeros(n + 1), np.zeros(n + 1, i4), count,
        np.zeros(PODS, i1), inf(), np.zeros(PODS, i8), np.zeros(PODS, i8), np.zeros(PODS, i1), inf(), inf(),
        np.zeros(PODS, i1), inf(), inf(), inf(), inf(), np.zeros(PODS), np.zeros(PODS), np.zeros(PODS, i8), np.zeros(PODS),
        np.zeros(PODS), np.zeros((PODS, rows)), np.zeros((PODS, rows), i4), np.full((2, PODS), np.inf), np.asarray(fixed, f8),
    )  # fmt: skip


# ---- decode ----


@njit
def _steps_s(s: Sim, p: int, n: float) -> float:
    """Duration of the worker's next n steps."""
    batch = s.d_batch[p]
    return n * (s.fixed[3] + s.fixed[4] * batch + s.fixed[5] * s.d_kv[p]) + s.fixed[5] * batch * n * (n - 1) / 2


@njit
def _steps_within(s: Sim, p: int, seconds: float) -> float:
    """How many steps, a fraction included, fit into `seconds`."""
    quadratic = s.fixed[5] * s.d_batch[p] / 2
    linear = s.fixed[3] + s.fixed[4] * s.d_batch[p] + s.fixed[5] * s.d_kv[p] - quadratic
    if quadratic <= 0.0:
        return seconds / linear
    return (math.sqrt(linear * linear + 4 * quadratic * seconds) - linear) / (2 * quadratic)


@njit
def _step_on(s: Sim, p: int, n: float) -> None:
    """Move the worker's boundary n steps on."""
    if n > 0:
        s.d_t0[p] += _steps_s(s, p, n)
        s.d_kv[p] += n * s.d_batch[p]
        s.d_step[p] += n
        s.tally[GENERATED] += n * s.d_batch[p]


@njit
def _to_boundary(s: Sim, p: int, now: float, after: bool) -> None:
    """The boundary becomes the first at or after `now`, or the last at or before it."""
    if s.d_batch[p] == 0:
        s.d_t0[p] = max(s.d_t0[p], now)
        return
    if now <= s.d_t0[p]:
        return
    steps = _steps_within(s, p, now - s.d_t0[p])
    if s.fixed[13] > 0:
        steps = math.ceil(steps - 1e-9) if after else math.floor(steps + 1e-9)
    _step_on(s, p, min(steps, s.heap_step[p, 0] - s.d_step[p]))


@njit
def _plan_decode(s: Sim, p: int) -> None:
    """When something happens to the worker next."""
    if s.d_state[p] == STARTING:
        s.d_next_s[p] = min(s.d_ready_s[p], s.d_death_s[p])
        return
    at = np.inf
    if s.d_batch[p] > 0:
        at = s.d_t0[p] + _steps_s(s, p, s.heap_step[p, 0] - s.d_step[p])
    at = min(at, s.d_death_s[p])
    if s.d_state[p] == DRAINING:
        at = min(at, s.d_limit_s[p])
    s.d_next_s[p] = at


@njit
def _heap_push(step: Any, ids: Any, size: int, key: float, value: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if step[parent] <= key:
            break
        step[i], ids[i] = step[parent], ids[parent]
        i = parent
    step[i], ids[i] = key, value


@njit
def _heap_pop(step: Any, ids: Any, size: int) -> None:
    key, value = step[size - 1], ids[size - 1]
    n, i = size - 1, 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and step[child + 1] < step[child]:
            child += 1
        if step[child] >= key:
            break
        step[i], ids[i] = step[child], ids[child]
        i = child
    step[i], ids[i] = key, value


@njit
def _roomiest(s: Sim, r: int) -> int:
    """The ready worker with the fewest sequences that has room, else -1."""
    best, least = -1, np.int64(1 << 40)
    need = s.context[r] + s.left[r]
    for p in range(int(s.tally[D_PLACES])):
        if s.d_state[p] == READY and s.d_batch[p] < least and s.d_batch[p] < s.fixed[8] and s.d_reserved[p] + need <= s.fixed[6]:
            best, least = p, s.d_batch[p]
    return best


@njit
def _join(s: Sim, p: int, r: int, now: float) -> None:
    _to_boundary(s, p, now, True)
    _heap_push(s.heap_step[p], s.heap[p], s.d_batch[p], s.d_step[p] + s.left[r], r)
    s.d_batch[p] += 1
    s.d_kv[p] += s.context[r]
    s.d_reserved[p] += s.context[r] + s.left[r]
    _plan_decode(s, p)


@njit
def _to_decode(s: Sim, r: int, now: float) -> None:
    if s.context[r] + s.left[r] > s.fixed[6]:  # fits no worker ever
        s.status[r] = DROPPED
        s.tally[DROPS] += 1
        return
    p = _roomiest(s, r) if s.tally[D_HEAD] == s.tally[D_TAIL] else -1
    if p >= 0:
        _join(s, p, r, now)
    else:
        s.decode_queue[int(s.tally[D_TAIL])] = r
        s.tally[D_TAIL] += 1


@njit
def _pull_decode(s: Sim, now: float) -> None:
    while s.tally[D_HEAD] < s.tally[D_TAIL]:
        r = s.decode_queue[int(s.tally[D_HEAD])]
        p = _roomiest(s, r)
        if p < 0:
            return
        s.tally[D_HEAD] += 1
        _join(s, p, r, now)


@njit
def _finish(s: Sim, r: int, now: float) -> None:
    s.status[r] = DONE
    s.last_s[r] = now
    s.tally[ENDED] += 1
    s.tally[ENDED_TOKENS] += s.output[r]
    s.tally[ENDED_KV] += s.context[r]
    if s.output[r] > 1:
        s.tally[TPOT_ALL] += 1
        if (now - s.first_s[r]) / (s.output[r] - 1) <= s.fixed[9]:
            s.tally[TPOT_OK] += 1


@njit
def _remove_decode(s: Sim, p: int, now: float) -> None:
    s.d_state[p] = NONE
    s.exit_s[1, p] = now
    s.d_next_s[p] = np.inf
    s.d_batch[p] = 0
    s.d_kv[p] = s.d_reserved[p] = 0.0


@njit
def _decode_event(s: Sim, p: int, now: float) -> None:
    if now >= s.d_death_s[p]:
        _decode_gone(s, p, now, True)
        return
    if s.d_state[p] == STARTING:
        s.d_state[p] = READY
        s.d_t0[p] = now
        _plan_decode(s, p)
        _pull_decode(s, now)
        return
    if s.d_state[p] == DRAINING and now >= s.d_limit_s[p]:
        _decode_gone(s, p, now, False)
        return
    _step_on(s, p, s.heap_step[p, 0] - s.d_step[p])
    while s.d_batch[p] > 0 and s.heap_step[p, 0] <= s.d_step[p] + 1e-6:
        r = s.heap[p, 0]
        _heap_pop(s.heap_step[p], s.heap[p], s.d_batch[p])
        s.d_batch[p] -= 1
        s.d_kv[p] -= s.context[r] + s.left[r]
        s.d_reserved[p] -= s.context[r] + s.left[r]
        if s.d_batch[p] == 0:
            s.d_kv[p] = s.d_reserved[p] = 0.0  # no rounding is carried on
        s.left[r] = 0
        _finish(s, r, now)
    if s.d_batch[p] == 0 and s.d_state[p] == DRAINING:
        _remove_decode(s, p, now)
    else:
        _plan_decode(s, p)
    _pull_decode(s, now)


@njit
def _decode_gone(s: Sim, p: int, now: float, died: bool) -> None:
    """A worker died (its requests are prefilled again elsewhere) or was killed at the end of its grace (they are lost)."""
    if s.d_state[p] != STARTING:
        _to_boundary(s, p, now, False)
        for i in range(s.d_batch[p]):
            r = s.heap[p, i]
            if not died:
                s.status[r] = KILLED
                s.tally[LOST] += 1
                continue
            made = s.left[r] - math.ceil(s.heap_step[p, i] - s.d_step[p])
            s.context[r] += made
            s.left[r] -= made
            s.work[r] = s.context[r]
            _requeue(s, r)
    _remove_decode(s, p, now)
    _start_prefills(s, now)


# ---- prefill ----


@njit
def _requeue(s: Sim, r: int) -> None:
    at = int(s.tally[A_TAIL])
    if at == len(s.again):
        s.status[r] = KILLED
        s.tally[LOST] += 1
        return
    s.again[at] = r
    s.tally[A_TAIL] += 1
    s.tally[RETRIES] += 1
    s.tally[QUEUED_TOKENS] += s.work[r]


@njit
def _start_batch(s: Sim, p: int, now: float) -> bool:
    """Whole requests up to the batch's tokens, a longer prompt alone; who waited too long is dropped. False: nothing waits."""
    again = s.tally[A_HEAD] < s.tally[A_TAIL]
    queue = s.again if again else s.queue
    head = A_HEAD if again else P_HEAD
    tail = int(s.tally[A_TAIL] if again else s.tally[P_TAIL])
    at = begin = int(s.tally[head])
    tokens, squares = 0.0, 0.0
    while at < tail:
        r = queue[at]
        n = float(s.work[r])
        if now - s.arrival_s[r] > s.fixed[10] and math.isnan(s.first_s[r]):
            s.status[r] = DROPPED
            s.tally[DROPS] += 1
            s.tally[QUEUED_TOKENS] -= n
            at += 1
            continue
        if tokens > 0 and tokens + n > s.fixed[7]:
            break
        tokens += n
        squares += n * n
        at += 1
    s.tally[head] = at
    if tokens == 0:
        return False
    s.tally[QUEUED_TOKENS] -= tokens
    duration = s.fixed[0] + s.fixed[1] * tokens + s.fixed[2] * squares
    s.tally[P_BUSY_S] += duration
    s.p_from[p], s.p_to[p], s.p_again[p] = begin, at, again
    s.p_ready_s[p] = now + duration
    s.p_next_s[p] = min(now + duration, s.p_death_s[p])
    return True


@njit
def _start_prefills(s: Sim, now: float) -> None:
    for p in range(int(s.tally[P_PLACES])):
        if s.p_state[p] == READY and s.p_from[p] == s.p_to[p] and not _start_batch(s, p, now):
            return


@njit
def _hand_over(s: Sim, r: int, now: float) -> None:
    if s.fixed[11] <= 0 and s.fixed[12] <= 0:
        _to_decode(s, r, now)
        return
    at = now + s.fixed[11] * s.context[r]
    if s.fixed[12] > 0:  # a network that all transfers share, one after the other
        seconds = s.context[r] / s.fixed[12]
        begin = max(now, s.tally[LINK_FREE])
        s.tally[LINK_FREE] = begin + seconds
        s.tally[LINK_BUSY_S] += seconds
        at = max(at, begin + seconds)
    i = int(s.tally[T_SIZE])
    s.tally[T_SIZE] += 1
    while i > 0 and s.moving_s[(i - 1) >> 1] > at:
        s.moving_s[i], s.moving[i] = s.moving_s[(i - 1) >> 1], s.moving[(i - 1) >> 1]
        i = (i - 1) >> 1
    s.moving_s[i], s.moving[i] = at, r


@njit
def _prefill_event(s: Sim, p: int, now: float) -> None:
    if s.p_state[p] == STARTING and now < s.p_death_s[p]:
        s.p_state[p] = READY
        s.p_next_s[p] = s.p_death_s[p]
        _start_batch(s, p, now)
        return
    died = now >= s.p_death_s[p] and now < s.p_ready_s[p]
    begin, end = s.p_from[p], s.p_to[p]
    s.p_from[p] = s.p_to[p] = 0
    s.p_next_s[p] = s.p_death_s[p]
    queue = s.again if s.p_again[p] else s.queue
    for i in range(begin, end):
        r = queue[i]
        if s.status[r] != PENDING:
            continue
        if died:
            _requeue(s, r)
            continue
        if math.isnan(s.first_s[r]):
            s.first_s[r] = now
            s.tally[FIRST] += 1
            s.tally[TTFT_ALL] += 1
            if now - s.arrival_s[r] <= s.ttft_limit_s[r]:
                s.tally[TTFT_OK] += 1
        s.tally[GENERATED] += 1
        s.left[r] -= 1
        s.context[r] += 1
        if s.left[r] <= 0:
            _finish(s, r, now)
        else:
            _hand_over(s, r, now)
    if died or now >= s.p_death_s[p] or s.p_state[p] == DRAINING:
        s.p_state[p] = NONE
        s.p_next_s[p] = np.inf
        s.exit_s[0, p] = now
        if died:
            _start_prefills(s, now)
    else:
        _start_batch(s, p, now)


# ---- the loop ----


@njit
def _moved(s: Sim, now: float) -> None:
    r = s.moving[0]
    n = int(s.tally[T_SIZE]) - 1
    s.tally[T_SIZE] = n
    key, value = s.moving_s[n], s.moving[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and s.moving_s[child + 1] < s.moving_s[child]:
            child += 1
        if s.moving_s[child] >= key:
            break
        s.moving_s[i], s.moving[i] = s.moving_s[child], s.moving[child]
        i = child
    s.moving_s[i], s.moving[i] = key, value
    _to_decode(s, r, now)


@njit
def _arrive(s: Sim, now: float) -> None:
    r = int(s.tally[NEXT])
    s.tally[NEXT] += 1
    n = float(s.work[r])
    s.tally[ARRIVALS] += 1
    s.tally[WORK] += n
    s.tally[WORK2] += n * n
    s.tally[QUEUED_TOKENS] += n
    s.queue[int(s.tally[P_TAIL])] = r
    s.tally[P_TAIL] += 1
    for p in range(int(s.tally[P_PLACES])):
        if s.p_state[p] == READY and s.p_from[p] == s.p_to[p]:
            _start_batch(s, p, now)
            return


@njit
def advance(s: Sim, until: float) -> float:
    """Run every event up to `until`. Returns the time of the next one."""
    n = len(s.arrival_s)
    p_places, d_places = int(s.tally[P_PLACES]), int(s.tally[D_PLACES])
    while True:
        at, kind, pod = np.inf, 0, -1
        if s.tally[NEXT] < n:
            at = s.arrival_s[int(s.tally[NEXT])]
        if s.tally[T_SIZE] > 0 and s.moving_s[0] < at:
            at, kind = s.moving_s[0], 1
        for p in range(p_places):
            if s.p_next_s[p] < at:
                at, kind, pod = s.p_next_s[p], 2, p
        for p in range(d_places):
            if s.d_next_s[p] < at:
                at, kind, pod = s.d_next_s[p], 3, p
        if at > until or at == np.inf:
            return at
        if kind == 0:
            _arrive(s, at)
        elif kind == 1:
            _moved(s, at)
        elif kind == 2:
            _prefill_event(s, pod, at)
        else:
            _decode_event(s, pod, at)


@njit
def settle(s: Sim, now: float) -> None:
    """Count the decode steps that were made by now."""
    for p in range(int(s.tally[D_PLACES])):
        if (s.d_state[p] == READY or s.d_state[p] == DRAINING) and s.d_batch[p] > 0:
            _to_boundary(s, p, now, False)
            _plan_decode(s, p)
