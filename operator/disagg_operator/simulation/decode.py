"""Decode workers: batches that grow and shrink, and the times at which their steps end.

A worker's steps are not simulated one by one. Between two changes of its batch, step i takes `d +
e*B + h*B^2 + f*(K + i*B)`, so times follow from a quadratic. A worker is kept as of its last batch
boundary, `boundary_s`, which may lie in the future of the clock: a sequence that arrives inside a
step joins at its end. That is how engines work (`aligned`). The benchmark of policies lets a
sequence join at once and make tokens at the rate of one a step, fractions included.
"""

from __future__ import annotations

import math

import numpy as np

from disagg_operator.simulation.columns import DONE, DRAINING, DROPPED, EMPTY, READY, STARTING, Columns
from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.heaps import heap_push


@njit
def steps_s(s: Columns, p: int, n: float) -> float:
    """Return how long the worker's next n steps take."""
    profile, batch = s.profile, s.decode.sequences[p]
    per_sequence_s = profile.e_s_per_sequence + profile.h_s_per_sequence2 * batch
    step_s = profile.d_s + per_sequence_s * batch + profile.f_s_per_token * s.decode.kv_tokens[p]
    return n * step_s + profile.f_s_per_token * batch * n * (n - 1) / 2


@njit
def steps_within(s: Columns, p: int, seconds: float) -> float:
    """Return how many steps, a fraction included, fit into `seconds`."""
    profile, batch = s.profile, s.decode.sequences[p]
    quadratic = profile.f_s_per_token * batch / 2
    per_sequence_s = profile.e_s_per_sequence + profile.h_s_per_sequence2 * batch
    linear = profile.d_s + per_sequence_s * batch + profile.f_s_per_token * s.decode.kv_tokens[p] - quadratic
    if quadratic <= 0.0:
        return seconds / linear
    return (math.sqrt(linear * linear + 4 * quadratic * seconds) - linear) / (2 * quadratic)


@njit
def step_on(s: Columns, p: int, n: float) -> None:
    """Move the worker's boundary n steps on."""
    if n > 0:
        batch, seconds = s.decode.sequences[p], steps_s(s, p, n)
        s.counters.steps += n
        s.counters.step_sequences += n * batch
        s.counters.step_kv_tokens += n * s.decode.kv_tokens[p] + batch * n * (n - 1) / 2
        s.counters.step_s += seconds
        s.decode.boundary_s[p] += seconds
        s.decode.kv_tokens[p] += n * batch
        s.decode.steps[p] += n
        s.counters.generated_tokens += n * batch


@njit
def to_boundary(s: Columns, p: int, now: float, after: bool) -> None:
    """Move the worker's boundary to the first at or after `now`, or to the last at or before it."""
    boundary_s = s.decode.boundary_s
    if s.decode.sequences[p] == 0:
        boundary_s[p] = max(boundary_s[p], now)
        return
    if now <= boundary_s[p]:
        return
    steps = steps_within(s, p, now - boundary_s[p])
    if s.rules.aligned:
        steps = math.ceil(steps - 1e-9) if after else math.floor(steps + 1e-9)
    step_on(s, p, min(steps, s.running.last_step[p, 0] - s.decode.steps[p]))


@njit
def plan_decode(s: Columns, p: int) -> None:
    """Set when something happens to the worker next."""
    workers = s.decode
    if workers.state[p] == STARTING:
        workers.next_s[p] = min(workers.ready_s[p], workers.death_s[p])
        return
    at = np.inf
    if workers.sequences[p] > 0:
        at = workers.boundary_s[p] + steps_s(s, p, s.running.last_step[p, 0] - workers.steps[p])
    at = min(at, workers.death_s[p])
    if workers.state[p] == DRAINING:
        at = min(at, workers.drain_limit_s[p])
    workers.next_s[p] = at


@njit
def roomiest(s: Columns, r: int) -> int:
    """Return the ready worker with the fewest sequences and room for the request, or -1."""
    workers = s.decode
    best, least = -1, np.int64(1 << 40)
    need = s.requests.context_tokens[r] + s.requests.left_tokens[r]
    for p in range(s.counters.decode_places):
        if (
            workers.state[p] == READY
            and workers.sequences[p] < least
            and workers.sequences[p] < s.profile.max_running
            and workers.reserved_tokens[p] + need <= s.profile.kv_tokens
        ):
            best, least = p, workers.sequences[p]
    return best


@njit
def take_in(s: Columns, r: int, now: float) -> None:
    """Let a request that arrives hold up the sequences of the worker that it would go to now."""
    p = roomiest(s, r)
    if p >= 0 and s.decode.sequences[p] > 0:
        to_boundary(s, p, now, True)
        s.decode.boundary_s[p] += s.profile.take_in_s
        plan_decode(s, p)


@njit
def join(s: Columns, p: int, r: int, now: float) -> None:
    """Add a request to the batch of a worker that has room for it."""
    to_boundary(s, p, now, True)
    context, left = s.requests.context_tokens[r], s.requests.left_tokens[r]
    heap_push(s.running.last_step[p], s.running.request[p], s.decode.sequences[p], s.decode.steps[p] + left, r)
    s.decode.sequences[p] += 1
    s.decode.kv_tokens[p] += context
    s.decode.reserved_tokens[p] += context + left
    plan_decode(s, p)


@njit
def to_decode(s: Columns, r: int, now: float) -> None:
    """Let a prefilled request join a worker or queue; drop it if it fits no worker ever."""
    if s.requests.context_tokens[r] + s.requests.left_tokens[r] > s.profile.kv_tokens:
        s.requests.status[r] = DROPPED
        s.counters.dropped += 1
        return
    p = roomiest(s, r) if s.counters.decode_head == s.counters.decode_tail else -1
    if p >= 0:
        join(s, p, r, now)
    else:
        s.queues.decode[s.counters.decode_tail] = r
        s.counters.decode_tail += 1


@njit
def pull_decode(s: Columns, now: float) -> None:
    """Let queued requests join, in order, as far as there is room."""
    while s.counters.decode_head < s.counters.decode_tail:
        r = s.queues.decode[s.counters.decode_head]
        p = roomiest(s, r)
        if p < 0:
            return
        s.counters.decode_head += 1
        join(s, p, r, now)


@njit
def finish(s: Columns, r: int, now: float) -> None:
    """Count a request that has its last token."""
    requests = s.requests
    requests.status[r] = DONE
    requests.last_s[r] = now + s.profile.overhead_s
    s.counters.ended += 1
    s.counters.ended_tokens += requests.output_tokens[r]
    s.counters.ended_kv_tokens += requests.context_tokens[r]
    if requests.output_tokens[r] > 1:
        s.counters.tpot_total += 1
        if (requests.last_s[r] - requests.first_s[r]) / (requests.output_tokens[r] - 1) <= s.rules.tpot_s:
            s.counters.tpot_ok += 1


@njit
def remove_decode(s: Columns, p: int, now: float) -> None:
    """Take a worker out of its place."""
    s.decode.state[p] = EMPTY
    s.decode.exit_s[p] = now
    s.decode.next_s[p] = np.inf
    s.decode.sequences[p] = 0
    s.decode.kv_tokens[p] = s.decode.reserved_tokens[p] = 0.0
