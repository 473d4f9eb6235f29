"""The columns of the event loop: requests, workers, queues, rules and counters.

Each is read by its name. A request is known by its row, a worker by its place in its pool.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from disagg_operator.performance.profile import Profile
from disagg_operator.simulation.tables import (
    Floats,
    Int8s,
    Int32s,
    Int64s,
    compiled_numbers,
    compiled_table,
    table,
)
from disagg_operator.simulation.traces import Trace

EMPTY, STARTING, READY, DRAINING = 0, 1, 2, 3  # state of a worker's place
PENDING, DONE, DROPPED, KILLED = 0, 1, 2, 3  # status of a request
PLACES = 512  # for the workers of one pool, draining ones included
_MOST_RETRIES = 1 << 20  # requests that may come back from dead workers, all together


class Requests(NamedTuple):
    """One row for each request of the trace, in the order of arrival."""

    arrival_s: Floats
    entry_s: Floats  # a router has let it through: it queues for prefill
    work_tokens: Int32s  # to prefill: the uncached prompt; after a death, everything again
    context_tokens: Int32s  # in the KV cache when decoding begins
    left_tokens: Int32s  # of the output, not made yet
    output_tokens: Int32s
    ttft_limit_s: Floats
    first_s: Floats  # when the client got the first token, NaN before
    last_s: Floats  # when the client got the last token, NaN before
    status: Int8s  # PENDING, DONE, DROPPED or KILLED


class PrefillWorkers(NamedTuple):
    """One row for each place of the prefill pool."""

    state: Int8s  # EMPTY, STARTING, READY or DRAINING
    next_s: Floats  # when something happens to it next
    ready_s: Floats  # when it is started, then when its batch ends
    death_s: Floats  # when it dies; inf: never
    exit_s: Floats  # when it was gone; inf before, and once the cluster has taken note
    batch_begin: Int64s  # its batch is this part of the queue that it was taken from
    batch_end: Int64s
    batch_retries: Int8s  # whether that is the queue of retries


class DecodeWorkers(NamedTuple):
    """One row for each place of the decode pool; a worker is as it was at its last boundary."""

    state: Int8s  # EMPTY, STARTING, READY or DRAINING
    next_s: Floats  # when something happens to it next
    ready_s: Floats  # when it is started
    death_s: Floats  # when it dies; inf: never
    exit_s: Floats  # when it was gone; inf before, and once the cluster has taken note
    drain_limit_s: Floats  # a draining worker is killed then
    boundary_s: Floats  # the end of one of its steps, see `decode`
    steps: Floats  # that it has made by then
    sequences: Int64s
    kv_tokens: Floats  # held by its sequences
    reserved_tokens: Floats  # that its sequences will hold in the end


class RunningSequences(NamedTuple):
    """The sequences of each decode worker, [place, row]: a heap by their last step."""

    last_step: Floats  # that makes the last token, counted as the worker's steps
    request: Int32s


class Transfers(NamedTuple):
    """KV caches on their way to decode: a heap by the end of the transfer."""

    end_s: Floats
    request: Int32s


class Queues(NamedTuple):
    """Requests that wait; head and tail of each queue are counters."""

    waiting: Int32s  # for prefill
    retries: Int32s  # of dead workers: to prefill again, before all others
    decode: Int32s  # prefilled, no decode worker had room


class Rules(NamedTuple):
    """The rules of the simulated cluster that the event loop follows."""

    tpot_s: float  # the objective
    drop_s: float  # a prompt that has waited longer is dropped
    link_tokens_per_s: float  # of the network that all transfers share; 0: without limit
    aligned: bool  # a sequence joins a decode batch between two steps, not at once
    by_deadline: bool  # the queue is in the order of deadlines, not of arrival
    patience_s: float  # after so long a late prompt comes first at times


@dataclass
class Counters:
    """Everything that is counted since the beginning, unless a comment says otherwise."""

    next_request: int = 0  # the row that arrives next
    waiting_head: int = 0  # of the queue: what was ever taken out, as for the other queues
    waiting_tail: int = 0  # of the queue: what was ever put in, as for the other queues
    late: int = 0  # at present, the last of the waiting, which can't be on time any more
    retries_head: int = 0
    retries_tail: int = 0
    decode_head: int = 0
    decode_tail: int = 0
    transfers: int = 0  # on their way, at present
    prefill_places: int = 0  # that were ever taken
    decode_places: int = 0
    queued_tokens: float = 0.0  # to prefill, at present
    arrivals: int = 0
    arrived_tokens: float = 0.0
    arrived_tokens_squared: float = 0.0  # sum of squares
    first_tokens: int = 0
    ttft_total: int = 0  # requests judged by their TTFT
    ttft_ok: int = 0
    tpot_total: int = 0  # requests judged by their TPOT
    tpot_ok: int = 0
    ended: int = 0
    ended_tokens: float = 0.0  # of output
    ended_kv_tokens: float = 0.0  # that the ended had when they began to decode
    dropped: int = 0
    killed: int = 0
    generated_tokens: float = 0.0
    batches: int = 0  # of prefill
    batch_tokens: float = 0.0
    batch_tokens_squared: float = 0.0  # sum of squares
    prefill_busy_s: float = 0.0
    steps: float = 0.0  # of decode workers; a fraction of one counts as such
    step_sequences: float = 0.0  # sum over the steps
    step_kv_tokens: float = 0.0  # sum over the steps
    step_s: float = 0.0
    link_free_s: float = 0.0  # when the network has moved what was given to it
    link_busy_s: float = 0.0

    def since(self, before: Counters) -> Counters:
        """Return how much each counter has grown."""
        return Counters(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


class Columns(NamedTuple):
    """Everything that the event loop reads or changes."""

    requests: Requests
    prefill: PrefillWorkers
    decode: DecodeWorkers
    running: RunningSequences
    transfers: Transfers
    queues: Queues
    profile: Profile
    rules: Rules
    counters: Counters

    def compiled(self) -> Columns:
        """Return the same columns as compiled code gets them."""
        return self._replace(
            requests=compiled_table(self.requests),
            prefill=compiled_table(self.prefill),
            decode=compiled_table(self.decode),
            running=compiled_table(self.running),
            transfers=compiled_table(self.transfers),
            profile=compiled_numbers(self.profile, Profile),
            rules=compiled_numbers(self.rules, Rules),
        )


def entry_times(arrival_s: Floats, front_s: float) -> Floats:
    """Return when each request is through the routers, which take `front_s` for one after another.

    The time at the router of a request that waits for no other is not added: the overhead counts
    it.
    """
    if front_s <= 0:
        return arrival_s
    before_s = front_s * np.arange(len(arrival_s))
    return np.asarray(np.maximum.accumulate(arrival_s - before_s) + before_s)


def request_rows(trace: Trace, entry_s: Floats, ttft_limit_s: Floats) -> Requests:
    """Return the rows of a trace's requests, none of which has arrived yet."""
    return table(
        Requests,
        len(trace),
        arrival_s=trace.arrival_s,
        entry_s=entry_s,
        work_tokens=np.maximum(trace.prompt_tokens - trace.cached_tokens, 1),
        context_tokens=trace.prompt_tokens,
        left_tokens=trace.output_tokens,
        output_tokens=trace.output_tokens,
        ttft_limit_s=ttft_limit_s,
        first_s=np.nan,
        last_s=np.nan,
    )


def empty_columns(requests: Requests, profile: Profile, rules: Rules) -> Columns:
    """Return a simulation before its first event, without workers."""
    n, never_s = len(requests.arrival_s), np.inf
    times: dict[str, Any] = {"next_s": never_s, "ready_s": never_s, "death_s": never_s, "exit_s": never_s}
    return Columns(
        requests=requests,
        prefill=table(PrefillWorkers, PLACES, **times),
        decode=table(DecodeWorkers, PLACES, **times, drain_limit_s=never_s),
        running=table(RunningSequences, (PLACES, int(profile.max_running))),
        transfers=table(Transfers, n + 1),
        queues=Queues(
            waiting=np.zeros(n, np.int32),
            retries=np.zeros(_MOST_RETRIES, np.int32),
            decode=np.zeros(n + _MOST_RETRIES, np.int32),
        ),
        profile=profile,
        rules=rules,
        counters=compiled_numbers(Counters(), Counters),
    )
