"""Which waiting prompts the bundled engine computes together: those of one length bucket (engine/prefill_scheduler.py has the rule).

A batch starts once its bucket holds `batch_full_tokens`, or the oldest prompt has waited `batch_wait_s`; then that one leads. Only for
profiles that say so: others take whatever waits, in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from disagg_operator.simulation.state import Sim, njit

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
def lead(s: Sim, queue: Any, head: int, tail: int, now: float) -> int:
    """Bring the prompts of the next batch to the head of the queue, all others keep their order. Returns how many; 0: wait for more."""
    leader = -1
    if now >= s.entry_s[queue[head]] + s.fixed[16] - 1e-9:
        leader = head
    else:
        offered = np.zeros(64)
        for i in range(head, tail):
            offered[bucket(s.work[queue[i]])] += s.work[queue[i]]
        for i in range(head, tail):
            if offered[bucket(s.work[queue[i]])] >= s.fixed[17]:
                leader = i
                break
    if leader < 0:
        return 0
    level = bucket(s.work[queue[leader]])
    room = s.fixed[7] - s.work[queue[leader]]
    taken, left = np.empty(tail - head, np.int32), np.empty(tail - head, np.int32)
    taken[0] = queue[leader]
    n, others = 1, 0
    for i in range(head, tail):
        r = queue[i]
        if i == leader:
            continue
        if bucket(s.work[r]) == level and s.work[r] <= room:
            room -= s.work[r]
            taken[n] = r
            n += 1
        else:
            left[others] = r
            others += 1
    queue[head : head + n] = taken[:n]
    queue[head + n : tail] = left[:others]
    return n
