"""The order in which waiting prompts are computed: by arrival or by deadline.

By deadline, as router and prefill workers have it, the queue is kept in order, in place. First
come the prompts that can still be on time, by when the first token is due (at most `patience_s`
after the arrival). Behind them stand the last `counters.late`, which can't, by arrival. Every
second batch is led by late ones that have waited for the patience, three of four by those that
have waited twice as long: so none is lost in a burst, and an overload leaves some of the capacity
to those that can be on time. Earliest due date first (Jackson 1955) with the late put off as by
Moore (1968) makes the fewest jobs late on one machine; for batches it is a heuristic.
"""

from __future__ import annotations

import math

from disagg_operator.simulation.columns import Columns
from disagg_operator.simulation.compiled import njit

FIRST_COME, EARLIEST_DEADLINE = "FirstComeFirstServed", "EarliestDeadline"
ORDERS = (FIRST_COME, EARLIEST_DEADLINE)


@njit
def _due_s(s: Columns, r: int) -> float:
    return s.requests.arrival_s[r] + s.requests.ttft_limit_s[r]


@njit
def _key(s: Columns, r: int) -> float:
    return s.requests.arrival_s[r] + min(s.requests.ttft_limit_s[r], s.rules.patience_s)


@njit
def batch_s(s: Columns, tokens: float, squares: float) -> float:
    """Return how long a prefill batch takes."""
    return s.profile.a_s + s.profile.b_s_per_token * tokens + s.profile.c_s_per_token2 * squares


@njit
def enqueue(s: Columns, r: int) -> None:
    """Put a prompt that arrives into the queue."""
    queue, at = s.queues.waiting, s.counters.waiting_tail
    s.counters.waiting_tail += 1
    if s.rules.by_deadline:
        head, late_from = s.counters.waiting_head, at - s.counters.late
        while at > late_from or (at > head and _key(s, queue[at - 1]) > _key(s, r)):
            queue[at] = queue[at - 1]
            at -= 1
    queue[at] = r


@njit
def _bring(s: Columns, at: int, to: int) -> None:
    """Move a prompt forward in the queue; those between move back by one place."""
    queue = s.queues.waiting
    r = queue[at]
    for i in range(at, to, -1):
        queue[i] = queue[i - 1]
    queue[to] = r


@njit
def _put_off(s: Columns, at: int, tail: int) -> None:
    """Move a prompt that can't be on time any more to the late ones, by arrival."""
    queue, arrival_s = s.queues.waiting, s.requests.arrival_s
    r, late_from = queue[at], tail - s.counters.late
    while at + 1 < late_from or (at + 1 < tail and arrival_s[queue[at + 1]] < arrival_s[r]):
        queue[at] = queue[at + 1]
        at += 1
    queue[at] = r
    s.counters.late += 1


@njit
def _is_late(s: Columns, r: int, now: float) -> bool:
    w = float(s.requests.work_tokens[r])
    return now + batch_s(s, w, w * w) > _due_s(s, r)


@njit
def latest_end_s(s: Columns, r: int, now: float) -> float:
    """Return when a batch with this prompt has to end; inf: no matter when."""
    return _due_s(s, r) if s.rules.by_deadline and not _is_late(s, r, now) else math.inf


@njit
def sort(s: Columns, now: float) -> int:
    """Put the queue in order for the next batch.

    Returns the end of those at its head that lead the batch because they have waited long, or that
    are dropped as it is made.
    """
    queue, tail = s.queues.waiting, s.counters.waiting_tail
    at = to = s.counters.waiting_head
    while at < tail - s.counters.late:
        if _is_late(s, queue[at], now):
            _put_off(s, at, tail)
        else:
            at += 1
    batch, tokens = s.counters.batches % 4, 0.0
    patience_s = s.rules.patience_s
    while s.counters.late > 0:
        at = tail - s.counters.late
        waited_s, w = now - s.requests.arrival_s[queue[at]], float(s.requests.work_tokens[queue[at]])
        if waited_s <= s.rules.drop_s:
            turn = (waited_s > patience_s and batch % 2 == 0) or (waited_s > 2 * patience_s and batch != 3)
            if not turn or (tokens > 0 and tokens + w > s.profile.batch_tokens):
                break
            tokens += w
        _bring(s, at, to)
        s.counters.late -= 1
        to += 1
    return to


@njit
def bring_batch(s: Columns, now: float) -> int:
    """Bring the prompts of the next batch to the head of the queue and return where the batch ends.

    No prompt joins that would make the batch end too late for another one in it. While a prompt is
    left that could be on time, no late one joins.
    """
    queue, head, tail = s.queues.waiting, s.counters.waiting_head, s.counters.waiting_tail
    at = end = sort(s, now)
    tokens, squares, end_by_s = 0.0, 0.0, math.inf
    for i in range(head, end):
        if now - s.requests.arrival_s[queue[i]] <= s.rules.drop_s:
            tokens += s.requests.work_tokens[queue[i]]
            squares += float(s.requests.work_tokens[queue[i]]) ** 2
    while at < tail:
        r, w = queue[at], float(s.requests.work_tokens[queue[at]])
        is_late = at >= tail - s.counters.late
        if tokens > 0 and (tokens + w > s.profile.batch_tokens or (is_late and at > end)):
            break
        own_s = latest_end_s(s, r, now)
        if tokens > 0 and now + batch_s(s, tokens + w, squares + w * w) > min(own_s, end_by_s):
            if is_late:
                break
        else:
            _bring(s, at, end)
            if is_late:
                s.counters.late -= 1
            end += 1
            tokens, squares, end_by_s = tokens + w, squares + w * w, min(own_s, end_by_s)
        at += 1
    return end
