"""The event loop, compiled by numba: prefill batches, hand-overs and deaths.

`cluster` starts and stops workers between two calls of `advance`, and reads the counters.
"""

from __future__ import annotations

import math

import numpy as np

from disagg_operator.simulation.batching import lead, oldest_s
from disagg_operator.simulation.columns import (
    DRAINING,
    DROPPED,
    EMPTY,
    KILLED,
    PENDING,
    READY,
    STARTING,
    Columns,
)
from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.decode import (
    finish,
    plan_decode,
    pull_decode,
    remove_decode,
    step_on,
    take_in,
    to_boundary,
    to_decode,
)
from disagg_operator.simulation.heaps import heap_pop, heap_push
from disagg_operator.simulation.ordering import batch_s, bring_batch, enqueue

_ARRIVAL, _TRANSFER, _PREFILL, _DECODE = 0, 1, 2, 3  # kinds of events


@njit
def _decode_event(s: Columns, p: int, now: float) -> None:
    workers = s.decode
    if now >= workers.death_s[p]:
        _decode_gone(s, p, now, True)
        return
    if workers.state[p] == STARTING:
        workers.state[p] = READY
        workers.boundary_s[p] = now
        plan_decode(s, p)
        pull_decode(s, now)
        return
    if workers.state[p] == DRAINING and now >= workers.drain_limit_s[p]:
        _decode_gone(s, p, now, False)
        return
    last_step = s.running.last_step[p]
    step_on(s, p, last_step[0] - workers.steps[p])
    while workers.sequences[p] > 0 and last_step[0] <= workers.steps[p] + 1e-6:
        r = s.running.request[p, 0]
        heap_pop(last_step, s.running.request[p], workers.sequences[p])
        held = s.requests.context_tokens[r] + s.requests.left_tokens[r]
        workers.sequences[p] -= 1
        workers.kv_tokens[p] -= held
        workers.reserved_tokens[p] -= held
        if workers.sequences[p] == 0:
            workers.kv_tokens[p] = workers.reserved_tokens[p] = 0.0  # no rounding is carried on
        s.requests.left_tokens[r] = 0
        finish(s, r, now)
    if workers.sequences[p] == 0 and workers.state[p] == DRAINING:
        remove_decode(s, p, now)
    else:
        plan_decode(s, p)
    pull_decode(s, now)


@njit
def _decode_gone(s: Columns, p: int, now: float, died: bool) -> None:
    """Remove a worker that died, or that was killed at the end of its grace period.

    The requests of one that died are prefilled again elsewhere, those of one that was killed are
    lost.
    """
    if s.decode.state[p] != STARTING:
        to_boundary(s, p, now, False)
        for i in range(s.decode.sequences[p]):
            r = s.running.request[p, i]
            if not died:
                s.requests.status[r] = KILLED
                s.counters.killed += 1
                continue
            # The step in which it dies is not made.
            missing = max(1, math.ceil(s.running.last_step[p, i] - s.decode.steps[p]))
            made = s.requests.left_tokens[r] - missing
            s.requests.context_tokens[r] += made
            s.requests.left_tokens[r] -= made
            s.requests.work_tokens[r] = s.requests.context_tokens[r]
            _retry(s, r)
    remove_decode(s, p, now)
    _start_prefills(s, now)


# ---- prefill ----


@njit
def _retry(s: Columns, r: int) -> None:
    """Queue a request of a dead worker to be prefilled again; it is lost if there is no room."""
    at = s.counters.retries_tail
    if at == len(s.queues.retries):
        s.requests.status[r] = KILLED
        s.counters.killed += 1
        return
    s.queues.retries[at] = r
    s.counters.retries_tail += 1
    s.counters.queued_tokens += s.requests.work_tokens[r]


@njit
def _start_batch(s: Columns, p: int, now: float) -> bool:
    """Start a batch of whole requests up to the batch's tokens; a longer prompt is computed alone.

    Requests that have waited too long are dropped. Returns False if nothing waits.
    """
    retries = s.counters.retries_head < s.counters.retries_tail
    queue = s.queues.retries if retries else s.queues.waiting
    tail = s.counters.retries_tail if retries else s.counters.waiting_tail
    at = begin = s.counters.retries_head if retries else s.counters.waiting_head
    if at < tail and not retries and s.profile.batch_full_tokens > 0:
        n = lead(s, now)
        if n == 0:  # more may come to fill the batch
            s.prefill.next_s[p] = min(oldest_s(s) + s.profile.batch_wait_s, s.prefill.death_s[p])
            return False
        tail = at + n
    elif at < tail and not retries and s.rules.by_deadline:
        tail = bring_batch(s, now)
    tokens, squares = 0.0, 0.0
    while at < tail:
        r = queue[at]
        w = float(s.requests.work_tokens[r])
        if now - s.requests.arrival_s[r] > s.rules.drop_s and math.isnan(s.requests.first_s[r]):
            s.requests.status[r] = DROPPED
            s.counters.dropped += 1
            s.counters.queued_tokens -= w
            at += 1
            continue
        if tokens > 0 and tokens + w > s.profile.batch_tokens:
            break
        tokens += w
        squares += w * w
        at += 1
    if retries:
        s.counters.retries_head = at
    else:
        s.counters.waiting_head = at
    if tokens == 0:
        return False
    duration_s = batch_s(s, tokens, squares)
    s.counters.queued_tokens -= tokens
    s.counters.prefill_busy_s += duration_s
    s.counters.batches += 1
    s.counters.batch_tokens += tokens
    s.counters.batch_tokens_squared += squares
    s.prefill.batch_begin[p], s.prefill.batch_end[p], s.prefill.batch_retries[p] = begin, at, retries
    s.prefill.ready_s[p] = now + duration_s
    s.prefill.next_s[p] = min(now + duration_s, s.prefill.death_s[p])
    return True


@njit
def _idle(s: Columns, p: int) -> bool:
    """Whether the worker is ready and computes no batch."""
    return s.prefill.state[p] == READY and s.prefill.batch_begin[p] == s.prefill.batch_end[p]


@njit
def _start_prefills(s: Columns, now: float) -> None:
    for p in range(s.counters.prefill_places):
        if _idle(s, p) and not _start_batch(s, p, now):
            return


@njit
def _hand_over(s: Columns, r: int, now: float) -> None:
    """Move a request's KV cache to decode, at once or as a transfer that takes its time."""
    profile, link_tokens_per_s, tokens = s.profile, s.rules.link_tokens_per_s, s.requests.context_tokens[r]
    if profile.transfer_s_per_token <= 0 and link_tokens_per_s <= 0 and profile.handover_s <= 0:
        to_decode(s, r, now)
        return
    end_s = now + profile.handover_s + profile.transfer_s_per_token * tokens
    if link_tokens_per_s > 0:  # a network that all transfers share, one after the other
        seconds = tokens / link_tokens_per_s
        begin_s = max(now, s.counters.link_free_s)
        s.counters.link_free_s = begin_s + seconds
        s.counters.link_busy_s += seconds
        end_s = max(end_s, begin_s + seconds)
    heap_push(s.transfers.end_s, s.transfers.request, s.counters.transfers, end_s, r)
    s.counters.transfers += 1


@njit
def _prefilled(s: Columns, r: int, now: float) -> None:
    """Count the token that prefill makes, and let the request end or go on to decode."""
    requests = s.requests
    if math.isnan(requests.first_s[r]):
        requests.first_s[r] = now + s.profile.overhead_s
        s.counters.first_tokens += 1
        s.counters.ttft_total += 1
        if requests.first_s[r] - requests.arrival_s[r] <= requests.ttft_limit_s[r]:
            s.counters.ttft_ok += 1
    s.counters.generated_tokens += 1
    requests.left_tokens[r] -= 1
    requests.context_tokens[r] += 1
    if requests.left_tokens[r] <= 0:
        finish(s, r, now)
    else:
        _hand_over(s, r, now)


@njit
def _prefill_event(s: Columns, p: int, now: float) -> None:
    workers = s.prefill
    if workers.state[p] == STARTING and now < workers.death_s[p]:
        workers.state[p] = READY
        workers.next_s[p] = workers.death_s[p]
        _start_batch(s, p, now)
        return
    died = now >= workers.death_s[p] and now < workers.ready_s[p]
    begin, end = workers.batch_begin[p], workers.batch_end[p]
    workers.batch_begin[p] = workers.batch_end[p] = 0
    workers.next_s[p] = workers.death_s[p]
    queue = s.queues.retries if workers.batch_retries[p] else s.queues.waiting
    for i in range(begin, end):
        r = queue[i]
        if s.requests.status[r] != PENDING:
            continue
        if died:
            _retry(s, r)
        else:
            _prefilled(s, r, now)
    if died or now >= workers.death_s[p] or workers.state[p] == DRAINING:
        workers.state[p] = EMPTY
        workers.next_s[p] = np.inf
        workers.exit_s[p] = now
        if died:
            _start_prefills(s, now)
    else:
        _start_batch(s, p, now)


# ---- the loop ----


@njit
def _transferred(s: Columns, now: float) -> None:
    r = s.transfers.request[0]
    heap_pop(s.transfers.end_s, s.transfers.request, s.counters.transfers)
    s.counters.transfers -= 1
    to_decode(s, r, now)


@njit
def _arrive(s: Columns, now: float) -> None:
    r = s.counters.next_request
    s.counters.next_request += 1
    w = float(s.requests.work_tokens[r])
    s.counters.arrivals += 1
    s.counters.arrived_tokens += w
    s.counters.arrived_tokens_squared += w * w
    s.counters.queued_tokens += w
    enqueue(s, r)
    if s.profile.take_in_s > 0 and s.requests.left_tokens[r] > 1:
        take_in(s, r, now)
    for p in range(s.counters.prefill_places):
        if _idle(s, p):
            _start_batch(s, p, now)
            return


@njit
def advance(s: Columns, until: float) -> float:
    """Run every event up to `until` and return the time of the next one."""
    n = len(s.requests.arrival_s)
    prefill_places, decode_places = s.counters.prefill_places, s.counters.decode_places
    while True:
        at, kind, place = np.inf, _ARRIVAL, -1
        if s.counters.next_request < n:
            at = s.requests.entry_s[s.counters.next_request]
        if s.counters.transfers > 0 and s.transfers.end_s[0] < at:
            at, kind = s.transfers.end_s[0], _TRANSFER
        for p in range(prefill_places):
            if s.prefill.next_s[p] < at:
                at, kind, place = s.prefill.next_s[p], _PREFILL, p
        for p in range(decode_places):
            if s.decode.next_s[p] < at:
                at, kind, place = s.decode.next_s[p], _DECODE, p
        if at > until or at == np.inf:
            return at
        if kind == _ARRIVAL:
            _arrive(s, at)
        elif kind == _TRANSFER:
            _transferred(s, at)
        elif kind == _PREFILL:
            _prefill_event(s, place, at)
        else:
            _decode_event(s, place, at)


@njit
def settle(s: Columns, now: float) -> None:
    """Count the decode steps that were made by now."""
    for p in range(s.counters.decode_places):
        ready = s.decode.state[p] == READY or s.decode.state[p] == DRAINING
        if ready and s.decode.sequences[p] > 0:
            to_boundary(s, p, now, False)
            plan_decode(s, p)
