"""Which waiting prompts the bundled engine computes together: those of one length bucket (engine/prefill_scheduler.py has the rule).

A batch starts once its bucket holds `batch_full_tokens`, or the oldest prompt has waited `batch_wait_s`; then that one leads. Only for
profiles that say so: others take whatever waits, in order.
"""

from __future__ import annotations

import numpy as np

from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.ordering import batch_s, by_deadline, latest_end_s, sort
from disagg_operator.simulation.state import LATE, P_HEAD, P_TAIL, Sim

_SHORTEST_TOKENS = 64


@njit
def bucket(tokens: float) -> int:
    """0 for up to 64 tokens, then one for each doubling."""
    level, most = 0, _SHORTEST_TOKENS
    while tokens > most:
        level += 1
        most *= 2
    return level


@njit
def oldest_s(s: Sim) -> float:
    """Since when the longest waiting prompt waits."""
    if not by_deadline(s):
        return float(s.entry_s[s.queue[int(s.tally[P_HEAD])]])
    oldest = np.inf
    for i in range(int(s.tally[P_HEAD]), int(s.tally[P_TAIL])):
        oldest = min(oldest, s.entry_s[s.queue[i]])
    return oldest


@njit
def _leader(s: Sim, head: int, tail: int, now: float) -> int:
    if now >= oldest_s(s) + s.fixed[16] - 1e-9:
        return head
    offered = np.zeros(64)
    for i in range(head, tail):
        offered[bucket(s.work[s.queue[i]])] += s.work[s.queue[i]]
    for i in range(head, tail):
        if offered[bucket(s.work[s.queue[i]])] >= s.fixed[17]:
            return i
    return -1


@njit
def lead(s: Sim, now: float) -> int:
    """Bring the prompts of the next batch to the head of the queue, all others keep their order. Returns how many; 0: wait for more."""
    if by_deadline(s):
        sort(s, now)
    queue, head, tail = s.queue, int(s.tally[P_HEAD]), int(s.tally[P_TAIL])
    late_from = tail - int(s.tally[LATE])
    leader = _leader(s, head, tail, now)
    if leader < 0:
        return 0
    first = queue[leader]
    level, tokens, squares = bucket(s.work[first]), float(s.work[first]), float(s.work[first]) ** 2
    earliest_s = latest_end_s(s, first, now)
    skipped = False
    taken, left = np.empty(tail - head, np.int32), np.empty(tail - head, np.int32)
    taken[0] = first
    n, others, late = 1, 0, int(leader >= late_from)
    for i in range(head, tail):
        r = queue[i]
        if i == leader:
            continue
        w, on_time = float(s.work[r]), i < late_from
        end_s = min(earliest_s, latest_end_s(s, r, now))
        fits = bucket(w) == level and tokens + w <= s.fixed[7]
        if fits and (on_time or not skipped) and now + batch_s(s, tokens + w, squares + w * w) <= end_s:
            tokens, squares, earliest_s = tokens + w, squares + w * w, end_s
            taken[n] = r
            n += 1
            late += int(not on_time)
        else:
            skipped = skipped or on_time
            left[others] = r
            others += 1
    s.tally[LATE] -= late
    queue[head : head + n] = taken[:n]
    queue[head + n : tail] = left[:others]
    return n
