"""The event loop, compiled by numba: prefill batches, hand-overs, deaths. `cluster` scales and reads the counters."""

from __future__ import annotations

import math

import numpy as np

from disagg_operator.simulation.batching import lead, oldest_s
from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.decode import (
    finish,
    heap_pop,
    plan_decode,
    pull_decode,
    remove_decode,
    step_on,
    take_in,
    to_boundary,
    to_decode,
)
from disagg_operator.simulation.ordering import batch_s, bring_batch, by_deadline, enqueue
from disagg_operator.simulation.state import (
    A_HEAD,
    A_TAIL,
    ARRIVALS,
    BATCH_TOKENS,
    BATCH_TOKENS2,
    BATCHES,
    D_PLACES,
    DRAINING,
    DROPPED,
    DROPS,
    FIRST,
    GENERATED,
    KILLED,
    LINK_BUSY_S,
    LINK_FREE,
    LOST,
    NEXT,
    NONE,
    P_BUSY_S,
    P_HEAD,
    P_PLACES,
    P_TAIL,
    PENDING,
    QUEUED_TOKENS,
    READY,
    RETRIES,
    STARTING,
    T_SIZE,
    TTFT_ALL,
    TTFT_OK,
    WORK,
    WORK2,
    Sim,
)


@njit
def _decode_event(s: Sim, p: int, now: float) -> None:
    if now >= s.d_death_s[p]:
        _decode_gone(s, p, now, True)
        return
    if s.d_state[p] == STARTING:
        s.d_state[p] = READY
        s.d_t0[p] = now
        plan_decode(s, p)
        pull_decode(s, now)
        return
    if s.d_state[p] == DRAINING and now >= s.d_limit_s[p]:
        _decode_gone(s, p, now, False)
        return
    step_on(s, p, s.heap_step[p, 0] - s.d_step[p])
    while s.d_batch[p] > 0 and s.heap_step[p, 0] <= s.d_step[p] + 1e-6:
        r = s.heap[p, 0]
        heap_pop(s.heap_step[p], s.heap[p], s.d_batch[p])
        s.d_batch[p] -= 1
        s.d_kv[p] -= s.context[r] + s.left[r]
        s.d_reserved[p] -= s.context[r] + s.left[r]
        if s.d_batch[p] == 0:
            s.d_kv[p] = s.d_reserved[p] = 0.0  # no rounding is carried on
        s.left[r] = 0
        finish(s, r, now)
    if s.d_batch[p] == 0 and s.d_state[p] == DRAINING:
        remove_decode(s, p, now)
    else:
        plan_decode(s, p)
    pull_decode(s, now)


@njit
def _decode_gone(s: Sim, p: int, now: float, died: bool) -> None:
    """A worker died (its requests are prefilled again elsewhere) or was killed at the end of its grace (they are lost)."""
    if s.d_state[p] != STARTING:
        to_boundary(s, p, now, False)
        for i in range(s.d_batch[p]):
            r = s.heap[p, i]
            if not died:
                s.status[r] = KILLED
                s.tally[LOST] += 1
                continue
            made = s.left[r] - max(1, math.ceil(s.heap_step[p, i] - s.d_step[p]))  # the step that it dies in is not made
            s.context[r] += made
            s.left[r] -= made
            s.work[r] = s.context[r]
            _requeue(s, r)
    remove_decode(s, p, now)
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
    if at < tail and not again and s.fixed[17] > 0:
        n = lead(s, now)
        if n == 0:  # more may come to fill the batch
            s.p_next_s[p] = min(oldest_s(s) + s.fixed[16], s.p_death_s[p])
            return False
        tail = at + n
    elif at < tail and not again and by_deadline(s):
        tail = bring_batch(s, now)
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
    duration = batch_s(s, tokens, squares)
    s.tally[P_BUSY_S] += duration
    s.tally[BATCHES] += 1
    s.tally[BATCH_TOKENS] += tokens
    s.tally[BATCH_TOKENS2] += squares
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
    if s.fixed[11] <= 0 and s.fixed[12] <= 0 and s.fixed[15] <= 0:
        to_decode(s, r, now)
        return
    at = now + s.fixed[15] + s.fixed[11] * s.context[r]
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
            s.first_s[r] = now + s.fixed[14]  # tokens reach the client so much later
            s.tally[FIRST] += 1
            s.tally[TTFT_ALL] += 1
            if s.first_s[r] - s.arrival_s[r] <= s.ttft_limit_s[r]:
                s.tally[TTFT_OK] += 1
        s.tally[GENERATED] += 1
        s.left[r] -= 1
        s.context[r] += 1
        if s.left[r] <= 0:
            finish(s, r, now)
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
    to_decode(s, r, now)


@njit
def _arrive(s: Sim, now: float) -> None:
    r = int(s.tally[NEXT])
    s.tally[NEXT] += 1
    n = float(s.work[r])
    s.tally[ARRIVALS] += 1
    s.tally[WORK] += n
    s.tally[WORK2] += n * n
    s.tally[QUEUED_TOKENS] += n
    enqueue(s, r)
    if s.fixed[18] > 0 and s.left[r] > 1:
        take_in(s, r, now)
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
            at = s.entry_s[int(s.tally[NEXT])]
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
            to_boundary(s, p, now, False)
            plan_decode(s, p)
