"""Decode workers: batches that grow and shrink, and when a step ends.

A worker's steps are not simulated one by one. Between two changes of its batch step i takes `d + e*B + h*B^2 + f*(K + i*B)`, so
times follow from a quadratic; a worker's state is kept as of its last batch boundary `d_t0`, which may lie in the future of the clock: who
arrives inside a step joins at its end. That is how engines work (`aligned`). The benchmark of policies lets a sequence join at once and
make tokens at the rate of one a step, fractions included.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.state import (
    D_HEAD,
    D_PLACES,
    D_TAIL,
    DONE,
    DRAINING,
    DROPPED,
    DROPS,
    ENDED,
    ENDED_KV,
    ENDED_TOKENS,
    GENERATED,
    NONE,
    READY,
    STARTING,
    STEP_KV,
    STEP_S,
    STEP_SEQUENCES,
    STEPS,
    TPOT_ALL,
    TPOT_OK,
    Sim,
)


@njit
def steps_s(s: Sim, p: int, n: float) -> float:
    """Duration of the worker's next n steps."""
    batch = s.d_batch[p]
    return n * (s.fixed[3] + (s.fixed[4] + s.fixed[19] * batch) * batch + s.fixed[5] * s.d_kv[p]) + s.fixed[5] * batch * n * (n - 1) / 2


@njit
def steps_within(s: Sim, p: int, seconds: float) -> float:
    """How many steps, a fraction included, fit into `seconds`."""
    quadratic = s.fixed[5] * s.d_batch[p] / 2
    linear = s.fixed[3] + (s.fixed[4] + s.fixed[19] * s.d_batch[p]) * s.d_batch[p] + s.fixed[5] * s.d_kv[p] - quadratic
    if quadratic <= 0.0:
        return seconds / linear
    return (math.sqrt(linear * linear + 4 * quadratic * seconds) - linear) / (2 * quadratic)


@njit
def step_on(s: Sim, p: int, n: float) -> None:
    """Move the worker's boundary n steps on."""
    if n > 0:
        batch, seconds = s.d_batch[p], steps_s(s, p, n)
        s.tally[STEPS] += n
        s.tally[STEP_SEQUENCES] += n * batch
        s.tally[STEP_KV] += n * s.d_kv[p] + batch * n * (n - 1) / 2
        s.tally[STEP_S] += seconds
        s.d_t0[p] += seconds
        s.d_kv[p] += n * batch
        s.d_step[p] += n
        s.tally[GENERATED] += n * s.d_batch[p]


@njit
def to_boundary(s: Sim, p: int, now: float, after: bool) -> None:
    """The boundary becomes the first at or after `now`, or the last at or before it."""
    if s.d_batch[p] == 0:
        s.d_t0[p] = max(s.d_t0[p], now)
        return
    if now <= s.d_t0[p]:
        return
    steps = steps_within(s, p, now - s.d_t0[p])
    if s.fixed[13] > 0:
        steps = math.ceil(steps - 1e-9) if after else math.floor(steps + 1e-9)
    step_on(s, p, min(steps, s.heap_step[p, 0] - s.d_step[p]))


@njit
def plan_decode(s: Sim, p: int) -> None:
    """When something happens to the worker next."""
    if s.d_state[p] == STARTING:
        s.d_next_s[p] = min(s.d_ready_s[p], s.d_death_s[p])
        return
    at = np.inf
    if s.d_batch[p] > 0:
        at = s.d_t0[p] + steps_s(s, p, s.heap_step[p, 0] - s.d_step[p])
    at = min(at, s.d_death_s[p])
    if s.d_state[p] == DRAINING:
        at = min(at, s.d_limit_s[p])
    s.d_next_s[p] = at


@njit
def heap_push(step: Any, ids: Any, size: int, key: float, value: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if step[parent] <= key:
            break
        step[i], ids[i] = step[parent], ids[parent]
        i = parent
    step[i], ids[i] = key, value


@njit
def heap_pop(step: Any, ids: Any, size: int) -> None:
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
def roomiest(s: Sim, r: int) -> int:
    """The ready worker with the fewest sequences that has room, else -1."""
    best, least = -1, np.int64(1 << 40)
    need = s.context[r] + s.left[r]
    for p in range(int(s.tally[D_PLACES])):
        if s.d_state[p] == READY and s.d_batch[p] < least and s.d_batch[p] < s.fixed[8] and s.d_reserved[p] + need <= s.fixed[6]:
            best, least = p, s.d_batch[p]
    return best


@njit
def take_in(s: Sim, r: int, now: float) -> None:
    """A request that arrives is taken in by the worker that it would go to now: those that run there wait meanwhile."""
    p = roomiest(s, r)
    if p >= 0 and s.d_batch[p] > 0:
        to_boundary(s, p, now, True)
        s.d_t0[p] += s.fixed[18]
        plan_decode(s, p)


@njit
def join(s: Sim, p: int, r: int, now: float) -> None:
    to_boundary(s, p, now, True)
    heap_push(s.heap_step[p], s.heap[p], s.d_batch[p], s.d_step[p] + s.left[r], r)
    s.d_batch[p] += 1
    s.d_kv[p] += s.context[r]
    s.d_reserved[p] += s.context[r] + s.left[r]
    plan_decode(s, p)


@njit
def to_decode(s: Sim, r: int, now: float) -> None:
    if s.context[r] + s.left[r] > s.fixed[6]:  # fits no worker ever
        s.status[r] = DROPPED
        s.tally[DROPS] += 1
        return
    p = roomiest(s, r) if s.tally[D_HEAD] == s.tally[D_TAIL] else -1
    if p >= 0:
        join(s, p, r, now)
    else:
        s.decode_queue[int(s.tally[D_TAIL])] = r
        s.tally[D_TAIL] += 1


@njit
def pull_decode(s: Sim, now: float) -> None:
    while s.tally[D_HEAD] < s.tally[D_TAIL]:
        r = s.decode_queue[int(s.tally[D_HEAD])]
        p = roomiest(s, r)
        if p < 0:
            return
        s.tally[D_HEAD] += 1
        join(s, p, r, now)


@njit
def finish(s: Sim, r: int, now: float) -> None:
    s.status[r] = DONE
    s.last_s[r] = now + s.fixed[14]
    s.tally[ENDED] += 1
    s.tally[ENDED_TOKENS] += s.output[r]
    s.tally[ENDED_KV] += s.context[r]
    if s.output[r] > 1:
        s.tally[TPOT_ALL] += 1
        if (s.last_s[r] - s.first_s[r]) / (s.output[r] - 1) <= s.fixed[9]:
            s.tally[TPOT_OK] += 1


@njit
def remove_decode(s: Sim, p: int, now: float) -> None:
    s.d_state[p] = NONE
    s.exit_s[1, p] = now
    s.d_next_s[p] = np.inf
    s.d_batch[p] = 0
    s.d_kv[p] = s.d_reserved[p] = 0.0
