"""Which waiting prompt is computed first: in the order of arrival, or `EarliestDeadline` as router and prefill workers have it.

In the latter the queue is kept so, in place: first who can still be on time, by when the first token is due (at most `patience_s` after the
arrival); behind them the last `tally[LATE]`, who can't, by arrival. Every second batch is led by the late ones that have waited for the
patience, three of four by those that have waited twice as long: so none is lost in a burst, and an overload leaves some of the capacity
to those who can be on time. Earliest due date first (Jackson 1955) with the late put off as by Moore (1968) makes the fewest jobs late on
one machine; for batches it is a heuristic.
"""

from __future__ import annotations

import math

from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.state import BATCHES, LATE, P_HEAD, P_TAIL, Sim

FIRST_COME, EARLIEST_DEADLINE = "FirstComeFirstServed", "EarliestDeadline"
ORDERS = (FIRST_COME, EARLIEST_DEADLINE)


@njit
def by_deadline(s: Sim) -> bool:
    return s.fixed[20] > 0


@njit
def _due_s(s: Sim, r: int) -> float:
    return s.arrival_s[r] + s.ttft_limit_s[r]


@njit
def _key(s: Sim, r: int) -> float:
    return s.arrival_s[r] + min(s.ttft_limit_s[r], s.fixed[21])


@njit
def batch_s(s: Sim, tokens: float, squares: float) -> float:
    """How long a prefill batch takes."""
    return s.fixed[0] + s.fixed[1] * tokens + s.fixed[2] * squares


@njit
def enqueue(s: Sim, r: int) -> None:
    """A prompt arrives."""
    queue, at = s.queue, int(s.tally[P_TAIL])
    s.tally[P_TAIL] += 1
    if by_deadline(s):
        head, late_from = int(s.tally[P_HEAD]), at - int(s.tally[LATE])
        while at > late_from or (at > head and _key(s, queue[at - 1]) > _key(s, r)):
            queue[at] = queue[at - 1]
            at -= 1
    queue[at] = r


@njit
def _bring(s: Sim, at: int, to: int) -> None:
    """Move one forward; those between move back by one place."""
    r = s.queue[at]
    for i in range(at, to, -1):
        s.queue[i] = s.queue[i - 1]
    s.queue[to] = r


@njit
def _put_off(s: Sim, at: int, tail: int) -> None:
    """It can't be on time any more: to the late ones, by arrival."""
    r, late_from = s.queue[at], tail - int(s.tally[LATE])
    while at + 1 < late_from or (at + 1 < tail and s.arrival_s[s.queue[at + 1]] < s.arrival_s[r]):
        s.queue[at] = s.queue[at + 1]
        at += 1
    s.queue[at] = r
    s.tally[LATE] += 1


@njit
def _is_late(s: Sim, r: int, now: float) -> bool:
    w = float(s.work[r])
    return now + batch_s(s, w, w * w) > _due_s(s, r)


@njit
def latest_end_s(s: Sim, r: int, now: float) -> float:
    """When a batch with this prompt in it shall have ended; inf: whenever."""
    return _due_s(s, r) if by_deadline(s) and not _is_late(s, r, now) else math.inf


@njit
def sort(s: Sim, now: float) -> int:
    """Put the queue in order for the next batch. Returns where those at its head end who lead the batch for having waited long, or are
    dropped as it is made."""
    tail = int(s.tally[P_TAIL])
    at = to = int(s.tally[P_HEAD])
    while at < tail - int(s.tally[LATE]):
        if _is_late(s, s.queue[at], now):
            _put_off(s, at, tail)
        else:
            at += 1
    batch, tokens = s.tally[BATCHES] % 4, 0.0
    while s.tally[LATE] > 0:
        at = tail - int(s.tally[LATE])
        waited_s, w = now - s.arrival_s[s.queue[at]], float(s.work[s.queue[at]])
        if waited_s <= s.fixed[10]:
            turn = (waited_s > s.fixed[21] and batch % 2 == 0) or (waited_s > 2 * s.fixed[21] and batch != 3)
            if not turn or (tokens > 0 and tokens + w > s.fixed[7]):
                break
            tokens += w
        _bring(s, at, to)
        s.tally[LATE] -= 1
        to += 1
    return to


@njit
def bring_batch(s: Sim, now: float) -> int:
    """Bring those to the head of the queue who make the next batch; returns where it ends. Nobody joins who would make it end too late for
    somebody in it; while one is left who could be on time no late one joins."""
    head, tail = int(s.tally[P_HEAD]), int(s.tally[P_TAIL])
    at = end = sort(s, now)
    tokens, squares, end_by_s = 0.0, 0.0, math.inf
    for i in range(head, end):
        if now - s.arrival_s[s.queue[i]] <= s.fixed[10]:
            tokens += s.work[s.queue[i]]
            squares += float(s.work[s.queue[i]]) ** 2
    while at < tail:
        r, w = s.queue[at], float(s.work[s.queue[at]])
        is_late = at >= tail - int(s.tally[LATE])
        if tokens > 0 and (tokens + w > s.fixed[7] or (is_late and at > end)):
            break
        own_s = latest_end_s(s, r, now)
        if tokens > 0 and now + batch_s(s, tokens + w, squares + w * w) > min(own_s, end_by_s):
            if is_late:
                break
        else:
            _bring(s, at, end)
            if is_late:
                s.tally[LATE] -= 1
            end += 1
            tokens, squares, end_by_s = tokens + w, squares + w * w, min(own_s, end_by_s)
        at += 1
    return end
