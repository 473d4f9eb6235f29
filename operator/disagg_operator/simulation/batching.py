"""The prompts that the bundled engine computes together: those of one length bucket.

A batch starts once its bucket holds `batch_full_tokens`, or the oldest prompt has waited
`batch_wait_s`; then that prompt leads. The rule is that of the worker's prefill scheduler, and
holds only for profiles that say so: others take whatever waits, in order.
"""

from __future__ import annotations

import numpy as np

from disagg_operator.simulation.columns import Columns
from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.ordering import batch_s, latest_end_s, sort

_SHORTEST_TOKENS = 64
_BUCKETS = 64


@njit
def bucket(tokens: float) -> int:
    """Return 0 for up to 64 tokens, then one more for each doubling."""
    level, most = 0, _SHORTEST_TOKENS
    while tokens > most:
        level += 1
        most *= 2
    return level


@njit
def oldest_s(s: Columns) -> float:
    """Return since when the oldest waiting prompt waits."""
    queue, head = s.queues.waiting, s.counters.waiting_head
    if not s.rules.by_deadline:
        return float(s.requests.entry_s[queue[head]])
    oldest = np.inf
    for i in range(head, s.counters.waiting_tail):
        oldest = min(oldest, s.requests.entry_s[queue[i]])
    return oldest


@njit
def _leader(s: Columns, head: int, tail: int, now: float) -> int:
    """Return the place in the queue of the prompt that leads the next batch, -1 for none yet."""
    if now >= oldest_s(s) + s.profile.batch_wait_s - 1e-9:
        return head
    queue, work = s.queues.waiting, s.requests.work_tokens
    offered = np.zeros(_BUCKETS)
    for i in range(head, tail):
        offered[bucket(work[queue[i]])] += work[queue[i]]
    for i in range(head, tail):
        if offered[bucket(work[queue[i]])] >= s.profile.batch_full_tokens:
            return i
    return -1


@njit
def lead(s: Columns, now: float) -> int:
    """Bring the prompts of the next batch to the head of the queue; all others keep their order.

    Returns how many they are, 0 if the batch waits for more.
    """
    if s.rules.by_deadline:
        sort(s, now)
    queue, head, tail = s.queues.waiting, s.counters.waiting_head, s.counters.waiting_tail
    late_from = tail - s.counters.late
    leader = _leader(s, head, tail, now)
    if leader < 0:
        return 0
    first = queue[leader]
    work = s.requests.work_tokens
    level, tokens, squares = bucket(work[first]), float(work[first]), float(work[first]) ** 2
    earliest_s = latest_end_s(s, first, now)
    skipped = False
    taken, left = np.empty(tail - head, np.int32), np.empty(tail - head, np.int32)
    taken[0] = first
    n, others, late = 1, 0, int(leader >= late_from)
    for i in range(head, tail):
        r = queue[i]
        if i == leader:
            continue
        w, on_time = float(work[r]), i < late_from
        end_s = min(earliest_s, latest_end_s(s, r, now))
        fits = bucket(w) == level and tokens + w <= s.profile.batch_tokens
        if fits and (on_time or not skipped) and now + batch_s(s, tokens + w, squares + w * w) <= end_s:
            tokens, squares, earliest_s = tokens + w, squares + w * w, end_s
            taken[n] = r
            n += 1
            late += int(not on_time)
        else:
            skipped = skipped or on_time
            left[others] = r
            others += 1
    s.counters.late -= late
    queue[head : head + n] = taken[:n]
    queue[head + n : tail] = left[:others]
    return n
