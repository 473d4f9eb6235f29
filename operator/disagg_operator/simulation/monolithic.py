"""Monolithic serving: every worker prefills and decodes. What disaggregation has to beat.

One iteration of a worker computes at most `chunk_tokens` of the prompts that it holds and one decode step of everything that runs (chunked
prefill: A. Agrawal et al., "Sarathi-Serve", OSDI 2024), so it takes `a + b*n + c*(sum of squares) + d + e*B + f*K`; without prompts it is
a decode step. A request goes at once to the worker with the least left to do and stays there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from disagg_operator.performance.profile import Profile
from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.decode import heap_pop, heap_push
from disagg_operator.simulation.traces import Trace


class Served(NamedTuple):
    """Per request: when its first and its last token came, s. `busy_s`: of all workers together."""

    first_s: Any
    last_s: Any
    busy_s: float


class _Sim(NamedTuple):
    """A row a request (`after`: the next in its worker's queue) or a worker (its queue, and what it decodes by the step that ends it)."""

    work: Any
    prompt: Any
    output: Any
    first_s: Any
    last_s: Any
    after: Any
    computed: Any  # of `work`
    admitted: Any
    head: Any
    tail: Any
    queued: Any  # tokens not computed yet
    chunk: Any  # tokens of the running iteration
    seats: Any
    batch: Any
    step: Any
    kv: Any
    reserved: Any
    heap_step: Any
    heap: Any
    free_s: Any  # end of the running iteration; inf: idle
    fixed: Any


def serve(trace: Trace, profile: Profile, workers: int, chunk_tokens: int = 2048) -> Served:
    """The whole trace on a fixed number of workers. Raises ValueError for a request that no worker's cache can hold."""
    total = trace.prompt_tokens.astype(np.int64) + trace.output_tokens
    if (total > profile.kv_tokens).any():
        raise ValueError(
            f"request {int(np.argmax(total > profile.kv_tokens))} needs more than the {profile.kv_tokens} KV tokens of a worker"
        )
    p, n, rows = profile, len(total), profile.max_running
    fixed = [
        p.a_s,
        p.b_s_per_token,
        p.c_s_per_token2,
        p.d_s,
        p.e_s_per_sequence,
        p.f_s_per_token,
        p.kv_tokens,
        p.max_running,
        chunk_tokens,
        p.h_s_per_sequence2,
    ]
    i8 = np.int64
    s = _Sim(
        np.maximum(trace.prompt_tokens - trace.cached_tokens, 1).astype(i8), trace.prompt_tokens.astype(i8), trace.output_tokens.astype(i8),
        np.full(n, np.nan), np.full(n, np.nan), np.full(n, -1), np.zeros(n, i8), np.zeros(n, np.bool_),
        np.full(workers, -1), np.full(workers, -1), np.zeros(workers), np.zeros(workers, i8), np.zeros(workers, i8), np.zeros(workers, i8),
        np.zeros(workers), np.zeros(workers), np.zeros(workers), np.zeros((workers, rows + 1)), np.zeros((workers, rows + 1), np.int32),
        np.full(workers, np.inf), np.array(fixed),
    )  # fmt: skip
    return Served(s.first_s, s.last_s, float(_run(s, trace.arrival_s.astype(np.float64))))


@njit
def _choose(s: _Sim, r: int) -> int:
    """The worker with the least left to do that has room for it; without room anywhere, the least loaded."""
    best, least = 0, np.inf
    for w in range(len(s.free_s)):
        load = s.fixed[1] * s.queued[w] + s.fixed[4] * s.batch[w] + s.fixed[5] * s.kv[w]
        if s.reserved[w] + s.prompt[r] + s.output[r] > s.fixed[6]:
            load += 1e6
        if load < least:
            best, least = w, load
    return best


@njit
def _start(s: _Sim, w: int) -> float:
    """Put together the next iteration. Returns its duration, 0 if there is nothing to do."""
    room, seconds = s.fixed[8], 0.0
    r = s.head[w]
    while r >= 0 and room > 0:
        need = s.prompt[r] + s.output[r]
        if not s.admitted[r]:
            if s.seats[w] >= s.fixed[7] or s.reserved[w] + need > s.fixed[6]:
                break
            s.admitted[r] = True
            s.seats[w] += 1
            s.reserved[w] += need
        before = float(s.computed[r])
        take = min(room, s.work[r] - before)
        seconds += s.fixed[1] * take + s.fixed[2] * ((before + take) ** 2 - before**2)
        room -= take
        r = s.after[r]
    s.chunk[w] = int(s.fixed[8] - room)
    if s.chunk[w] > 0:
        seconds += s.fixed[0]
    if s.batch[w] > 0:
        seconds += s.fixed[3] + (s.fixed[4] + s.fixed[9] * s.batch[w]) * s.batch[w] + s.fixed[5] * s.kv[w]
    return seconds


@njit
def _leave(s: _Sim, w: int, r: int, now: float) -> None:
    s.last_s[r] = now
    s.seats[w] -= 1
    s.reserved[w] -= s.prompt[r] + s.output[r]


@njit
def _end(s: _Sim, w: int, now: float) -> None:
    """What the iteration that ends has made: a token of each running sequence, then the first ones of prompts that are whole now."""
    if s.batch[w] > 0:
        s.step[w] += 1
        s.kv[w] += s.batch[w]
        while s.batch[w] > 0 and s.heap_step[w, 0] <= s.step[w]:
            r = s.heap[w, 0]
            heap_pop(s.heap_step[w], s.heap[w], s.batch[w])
            s.batch[w] -= 1
            s.kv[w] -= s.prompt[r] + s.output[r]
            _leave(s, w, r, now)
    left = s.chunk[w]
    s.queued[w] -= left
    while left > 0:
        r = s.head[w]
        take = min(left, s.work[r] - s.computed[r])
        s.computed[r] += take
        left -= take
        if s.computed[r] < s.work[r]:
            return
        s.head[w] = s.after[r]
        s.first_s[r] = now
        if s.output[r] == 1:
            _leave(s, w, r, now)
        else:
            heap_push(s.heap_step[w], s.heap[w], s.batch[w], s.step[w] + s.output[r] - 1, r)
            s.batch[w] += 1
            s.kv[w] += s.prompt[r] + 1


@njit
def _run(s: _Sim, arrival_s: Any) -> float:
    busy_s, r = 0.0, 0
    while True:
        w = int(np.argmin(s.free_s))
        if r < len(arrival_s) and arrival_s[r] <= s.free_s[w]:
            now = arrival_s[r]
            w = _choose(s, r)
            if s.head[w] < 0:
                s.head[w] = r
            else:
                s.after[s.tail[w]] = r
            s.tail[w] = r
            s.queued[w] += s.work[r]
            r += 1
            if s.free_s[w] < np.inf:
                continue
        elif s.free_s[w] == np.inf:
            return busy_s
        else:
            now = s.free_s[w]
            _end(s, w, now)
        seconds = _start(s, w)
        busy_s += seconds
        s.free_s[w] = now + seconds if seconds > 0 else np.inf
