"""Monolithic serving, which disaggregation has to beat: every worker prefills and decodes.

One iteration of a worker computes at most `chunk_tokens` of the prompts that it holds and one
decode step of everything that runs (chunked prefill: A. Agrawal et al., "Sarathi-Serve", OSDI
2024). The weights are read once for both, and the chunk is computed meanwhile, so it takes
`max(d, a + b*n) + c*(sum of squares) + e*B + h*B^2 + f*K`; without prompts it is a decode step. A
request goes at once to the worker with the least left to do and stays there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from disagg_operator.performance.profile import Profile
from disagg_operator.simulation.columns import RunningSequences
from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.heaps import heap_pop, heap_push
from disagg_operator.simulation.tables import Bools, Floats, Int64s, compiled_numbers, compiled_table, table
from disagg_operator.simulation.traces import Trace

_NOBODY = -1  # no row of a request
_NO_ROOM_S = 1e6  # a worker without room is behind all that have room


class Served(NamedTuple):
    """The times of each request's first and last token, and the work of all workers."""

    first_s: Floats
    last_s: Floats
    busy_s: float


class _Held(NamedTuple):
    """One row for each request."""

    work_tokens: Int64s  # to compute in prefill
    prompt_tokens: Int64s
    output_tokens: Int64s
    computed_tokens: Int64s  # of the work
    admitted: Bools  # its worker keeps room for it
    after: Int64s  # the request behind it in its worker's queue
    first_s: Floats
    last_s: Floats


class _Workers(NamedTuple):
    """One row for each worker."""

    head: Int64s  # its queue of prompts, linked by `after`
    tail: Int64s
    queued_tokens: Floats  # not computed yet
    chunk_tokens: Int64s  # of the running iteration
    seats: Int64s  # requests that it keeps room for
    sequences: Int64s  # that decode
    steps: Floats  # of decode, made so far
    kv_tokens: Floats  # held by the sequences that decode
    reserved_tokens: Floats  # that all its admitted requests will hold in the end
    free_s: Floats  # end of the running iteration; inf: idle


class _Monolithic(NamedTuple):
    """Everything that the loop reads or changes."""

    requests: _Held
    workers: _Workers
    running: RunningSequences
    profile: Profile
    chunk_tokens: float  # of prompts, that one iteration computes at most


def serve(trace: Trace, profile: Profile, workers: int, chunk_tokens: int = 2048) -> Served:
    """Serve the whole trace on a fixed number of workers.

    Raises ValueError for a request that no worker's cache can hold.
    """
    total = trace.prompt_tokens.astype(np.int64) + trace.output_tokens
    too_large = total > profile.kv_tokens
    if too_large.any():
        first = int(np.argmax(too_large))
        raise ValueError(f"request {first} needs more than the {profile.kv_tokens} KV tokens of a worker")
    requests = table(
        _Held,
        len(trace),
        work_tokens=np.maximum(trace.prompt_tokens - trace.cached_tokens, 1),
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        after=_NOBODY,
        first_s=np.nan,
        last_s=np.nan,
    )
    s = _Monolithic(
        requests=compiled_table(requests),
        workers=compiled_table(table(_Workers, workers, head=_NOBODY, tail=_NOBODY, free_s=np.inf)),
        running=compiled_table(table(RunningSequences, (workers, int(profile.max_running) + 1))),
        profile=compiled_numbers(profile, Profile),
        chunk_tokens=float(chunk_tokens),
    )
    busy_s = _run(s, trace.arrival_s.astype(np.float64))
    return Served(requests.first_s, requests.last_s, float(busy_s))


@njit
def _choose(s: _Monolithic, r: int) -> int:
    """Return the worker with the least left to do that has room for the request.

    Without room anywhere it is the least loaded one.
    """
    best, least = 0, np.inf
    profile, need = s.profile, s.requests.prompt_tokens[r] + s.requests.output_tokens[r]
    for w in range(len(s.workers.free_s)):
        load = (
            profile.b_s_per_token * s.workers.queued_tokens[w]
            + profile.e_s_per_sequence * s.workers.sequences[w]
            + profile.f_s_per_token * s.workers.kv_tokens[w]
        )
        if s.workers.reserved_tokens[w] + need > profile.kv_tokens:
            load += _NO_ROOM_S
        if load < least:
            best, least = w, load
    return best


@njit
def _start(s: _Monolithic, w: int) -> float:
    """Put together the next iteration and return its duration, 0 if there is nothing to do."""
    requests, workers, profile = s.requests, s.workers, s.profile
    room, seconds, fixed_s = s.chunk_tokens, 0.0, 0.0
    r = workers.head[w]
    while r >= 0 and room > 0:
        need = requests.prompt_tokens[r] + requests.output_tokens[r]
        if not requests.admitted[r]:
            if workers.seats[w] >= profile.max_running or workers.reserved_tokens[w] + need > profile.kv_tokens:
                break
            requests.admitted[r] = True
            workers.seats[w] += 1
            workers.reserved_tokens[w] += need
        before = float(requests.computed_tokens[r])
        take = min(room, requests.work_tokens[r] - before)
        seconds += profile.c_s_per_token2 * ((before + take) ** 2 - before**2)
        room -= take
        r = requests.after[r]
    workers.chunk_tokens[w] = int(s.chunk_tokens - room)
    if workers.chunk_tokens[w] > 0:
        fixed_s = profile.a_s + profile.b_s_per_token * workers.chunk_tokens[w]
    if workers.sequences[w] > 0:
        batch = workers.sequences[w]
        per_sequence_s = profile.e_s_per_sequence + profile.h_s_per_sequence2 * batch
        seconds += per_sequence_s * batch + profile.f_s_per_token * workers.kv_tokens[w]
        if fixed_s > 0:  # multiplied together with the chunk, as Profile.chunk_s says
            fixed_s += max(0.0, profile.b_s_per_token - per_sequence_s) * batch
        fixed_s = max(fixed_s, profile.d_s)
    return seconds + fixed_s


@njit
def _leave(s: _Monolithic, w: int, r: int, now: float) -> None:
    s.requests.last_s[r] = now
    s.workers.seats[w] -= 1
    s.workers.reserved_tokens[w] -= s.requests.prompt_tokens[r] + s.requests.output_tokens[r]


@njit
def _end(s: _Monolithic, w: int, now: float) -> None:
    """Book what the iteration that ends has made.

    That is a token of each running sequence, and the first token of each prompt that is whole now.
    """
    requests, workers = s.requests, s.workers
    last_step, running = s.running.last_step[w], s.running.request[w]
    if workers.sequences[w] > 0:
        workers.steps[w] += 1
        workers.kv_tokens[w] += workers.sequences[w]
        while workers.sequences[w] > 0 and last_step[0] <= workers.steps[w]:
            r = running[0]
            heap_pop(last_step, running, workers.sequences[w])
            workers.sequences[w] -= 1
            workers.kv_tokens[w] -= requests.prompt_tokens[r] + requests.output_tokens[r]
            _leave(s, w, r, now)
    left = workers.chunk_tokens[w]
    workers.queued_tokens[w] -= left
    while left > 0:
        r = workers.head[w]
        take = min(left, requests.work_tokens[r] - requests.computed_tokens[r])
        requests.computed_tokens[r] += take
        left -= take
        if requests.computed_tokens[r] < requests.work_tokens[r]:
            return
        workers.head[w] = requests.after[r]
        requests.first_s[r] = now
        if requests.output_tokens[r] == 1:
            _leave(s, w, r, now)
        else:
            heap_push(last_step, running, workers.sequences[w], workers.steps[w] + requests.output_tokens[r] - 1, r)
            workers.sequences[w] += 1
            workers.kv_tokens[w] += requests.prompt_tokens[r] + 1


@njit
def _enqueue(s: _Monolithic, w: int, r: int) -> None:
    if s.workers.head[w] < 0:
        s.workers.head[w] = r
    else:
        s.requests.after[s.workers.tail[w]] = r
    s.workers.tail[w] = r
    s.workers.queued_tokens[w] += s.requests.work_tokens[r]


@njit
def _run(s: _Monolithic, arrival_s: Floats) -> float:
    """Run every event and return for how long all workers together were busy."""
    busy_s, r, free_s = 0.0, 0, s.workers.free_s
    while True:
        w = int(np.argmin(free_s))
        if r < len(arrival_s) and arrival_s[r] <= free_s[w]:
            now = arrival_s[r]
            w = _choose(s, r)
            _enqueue(s, w, r)
            r += 1
            if free_s[w] < np.inf:
                continue
        elif free_s[w] == np.inf:
            return busy_s
        else:
            now = free_s[w]
            _end(s, w, now)
        seconds = _start(s, w)
        busy_s += seconds
        free_s[w] = now + seconds if seconds > 0 else np.inf
