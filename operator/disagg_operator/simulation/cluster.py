"""A deployment in simulated time: workers start, serve, drain and end as a policy says.

Every request and every GPU-second is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals, Targets
from disagg_operator.performance.profile import Profile
from disagg_operator.simulation import kernel
from disagg_operator.simulation.columns import (
    DRAINING,
    EMPTY,
    PENDING,
    PLACES,
    READY,
    STARTING,
    Counters,
    DecodeWorkers,
    PrefillWorkers,
    Requests,
    Rules,
    empty_columns,
    entry_times,
    request_rows,
)
from disagg_operator.simulation.ordering import EARLIEST_DEADLINE, FIRST_COME, ORDERS
from disagg_operator.simulation.scrapes import TickRow, TickTable, decode_signals, prefill_signals
from disagg_operator.simulation.tables import Floats, plain_numbers
from disagg_operator.simulation.traces import Trace

Policy = Callable[[Observation], Targets]
PREFILL, DECODE = 0, 1
_LAST_S = 86_400.0  # after the last arrival everything ends within a day


@dataclass(frozen=True, slots=True)
class Setup:
    """The cluster and its rules; the defaults are those of the benchmark."""

    profile: Profile
    tpot_s: float = 0.060  # the objective
    ttft_least_s: float = 1.0  # the objective is this, or `ttft_factor` times the prompt's
    ttft_factor: float = 5.0  # isolated prefill, whichever is more
    interval_s: float = 15.0  # between two scrapes, each followed by a decision
    lag: int = 1  # scrapes that a policy's values are old
    cold_start_s: tuple[float, float] = (60.0, 180.0)  # from, to; drawn for each new worker
    warm_workers: int | None = None  # workers of a pool beyond so many also wait for a node
    node_start_s: tuple[float, float] = (180.0, 300.0)  # from, to; for a node
    grace_s: float = 600.0  # for a draining worker; inf: without limit
    drop_s: float = 60.0  # a prompt that has waited longer is dropped
    queue_order: str = FIRST_COME  # of the prompts that wait for prefill: one of `ordering.ORDERS`
    patience_s: float = 20.0  # after so long a late prompt comes first at times
    min_prefill: int = 1  # workers
    min_decode: int = 1  # workers
    most: int = 40  # workers of a pool
    max_gpus: int | None = None  # that the policy may ask for, of both pools together; None: no limit
    room: int | None = None  # workers that the cluster has places for; those beyond wait, unpaid; None: no limit
    initial: tuple[int, int] | None = None  # prefill and decode workers; None: what the load needs
    unscored_s: float = 600.0  # at the beginning
    failures_per_worker_hour: float = 0.0
    link_tokens_per_s: float = 0.0  # of KV, over a network that all transfers share; 0: no limit
    blind_s: tuple[tuple[float, float], ...] = ()  # from, to: spans without metrics
    flip_s: float = 10.0  # for a worker to change its role
    aligned: bool = False  # sequences join a decode batch between two steps, as in an engine
    routers: int = 0  # 0: no router is ever busy
    seed: int = 0

    def least(self, kind: int) -> int:
        """Return the fewest workers of a pool: of PREFILL or of DECODE."""
        return (self.min_prefill, self.min_decode)[kind]


@dataclass
class _SimulatedPool:
    """The workers of one pool, and what only the cluster knows of them."""

    kind: int  # PREFILL or DECODE
    workers: PrefillWorkers | DecodeWorkers
    born_s: Floats = field(default_factory=lambda: np.zeros(PLACES))  # when each was created
    becomes: dict[int, int] = field(default_factory=dict)  # draining worker: pool that it flips to
    desired: int = 0  # workers
    cold_starts_s: list[float] = field(default_factory=list)  # of each worker that was started
    unplaced: dict[int, float] = field(default_factory=dict)  # worker without a place in the cluster: since when

    def places(self, state: int) -> Any:
        """Return the places of the workers in a state."""
        return np.flatnonzero(self.workers.state == state)

    def paid(self) -> int:
        """Return how many workers have GPUs, those that start or drain included."""
        return int((self.workers.state != EMPTY).sum()) - len(self.unplaced)


class Cluster:
    """One simulation; `run` may be called once."""

    def __init__(self, trace: Trace, setup: Setup) -> None:
        if setup.queue_order not in ORDERS:
            raise ValueError(f"queue_order: {setup.queue_order!r} is none of {', '.join(ORDERS)}")
        p = setup.profile
        self.trace, self.setup = trace, setup
        work = np.maximum(trace.prompt_tokens - trace.cached_tokens, 1).astype(np.float64)
        isolated_s = p.a_s + p.b_s_per_token * work + p.c_s_per_token2 * work * work
        limit_s = np.maximum(setup.ttft_least_s, setup.ttft_factor * isolated_s)
        entry_s = entry_times(trace.arrival_s, p.front_s / setup.routers if setup.routers else 0.0)
        self.columns = empty_columns(request_rows(trace, entry_s, limit_s), p, _rules(setup))
        self._compiled = self.columns.compiled()
        self._random = np.random.default_rng(setup.seed)
        self._pools = (_SimulatedPool(PREFILL, self.columns.prefill), _SimulatedPool(DECODE, self.columns.decode))
        self.gpu_s = 0.0
        self.starts = self.actions = self.flips = 0
        self._rows: list[TickRow] = []
        self._last_count = Counters()

    @property
    def requests(self) -> Requests:
        """The requests as they are now."""
        return self.columns.requests

    @property
    def counters(self) -> Counters:
        """The counters as they are now, in plain numbers."""
        return plain_numbers(self.columns.counters, Counters)

    # ---- workers ----

    def _create(self, pool: _SimulatedPool, now: float, delay_s: float) -> int:
        workers, counters = pool.workers, self.columns.counters
        place = int(np.flatnonzero((workers.state == EMPTY) & ~np.isfinite(workers.exit_s))[0])
        pool.born_s[place] = now
        workers.state[place] = STARTING
        self._begin(pool, place, now, delay_s)
        if pool.kind == DECODE:
            self.columns.decode.drain_limit_s[place] = np.inf
            counters.decode_places = max(counters.decode_places, place + 1)
        else:
            counters.prefill_places = max(counters.prefill_places, place + 1)
        return place

    def _begin(self, pool: _SimulatedPool, place: int, now: float, delay_s: float) -> None:
        workers, rate = pool.workers, self.setup.failures_per_worker_hour / 3600
        workers.ready_s[place] = now + delay_s
        placed = rate and math.isfinite(delay_s)
        workers.death_s[place] = now + self._random.exponential(1 / rate) if placed else np.inf
        workers.next_s[place] = min(workers.ready_s[place], workers.death_s[place])

    def _full(self) -> bool:
        return self.setup.room is not None and sum(pool.paid() for pool in self._pools) >= self.setup.room

    def _place(self, now: float) -> None:
        """Give the places that are free to the workers that have waited longest for one."""
        waiting = sorted(
            (since_s, pool.kind, place) for pool in self._pools for place, since_s in pool.unplaced.items()
        )
        for _, kind, place in waiting:
            if self._full():
                return
            pool = self._pools[kind]
            self._leave_queue(pool, place, now)
            delay_s = self._cold_start_s(pool)
            pool.cold_starts_s.append(delay_s)
            self._begin(pool, place, now, delay_s)

    def _leave_queue(self, pool: _SimulatedPool, place: int, now: float) -> None:
        """Note that a worker waits for a place no more; the time without one is not paid."""
        since_s = pool.unplaced.pop(place, None)
        if since_s is not None:
            self.gpu_s -= (now - since_s) * self.setup.profile.gpus

    def _cold_start_s(self, pool: _SimulatedPool) -> float:
        seconds = float(self._random.uniform(*self.setup.cold_start_s))
        if self.setup.warm_workers is not None and pool.paid() >= self.setup.warm_workers:
            seconds += float(self._random.uniform(*self.setup.node_start_s))
        return seconds

    def _pay(self, pool: _SimulatedPool, place: int, until: float) -> None:
        self.gpu_s += (until - pool.born_s[place]) * self.setup.profile.gpus

    def _collect_exits(self, now: float) -> None:
        for pool in self._pools:
            exit_s = pool.workers.exit_s
            for place in np.flatnonzero(np.isfinite(exit_s)).tolist():
                self._pay(pool, place, float(exit_s[place]))
                exit_s[place] = np.inf
                goes = pool.becomes.pop(place, None)
                if goes is not None:
                    self._create(self._pools[goes], now, self.setup.flip_s)

    def _release(self, pool: _SimulatedPool, place: int, now: float) -> None:
        """Let a worker drain; one that computes nothing is gone at once."""
        self._leave_queue(pool, place, now)
        prefill, decode, workers = self.columns.prefill, self.columns.decode, pool.workers
        computes = prefill.batch_begin[place] < prefill.batch_end[place]
        if pool.kind == DECODE:
            computes = decode.sequences[place] > 0
        if workers.state[place] == STARTING or not computes:
            workers.state[place], workers.next_s[place], workers.exit_s[place] = EMPTY, np.inf, now
            return
        workers.state[place] = DRAINING
        if pool.kind == DECODE:
            decode.drain_limit_s[place] = now + self.setup.grace_s
            decode.next_s[place] = min(decode.next_s[place], decode.drain_limit_s[place])

    def _victims(self, pool: _SimulatedPool, n: int) -> list[int]:
        """Return the workers to stop first: those that start, youngest first, then the idlest."""
        starting = sorted(pool.places(STARTING).tolist(), key=lambda i: -pool.born_s[i])
        prefill = self.columns.prefill
        if pool.kind == DECODE:
            load = self.columns.decode.sequences
        else:
            load = np.where(prefill.batch_begin == prefill.batch_end, 0.0, prefill.ready_s)
        ready = sorted(pool.places(READY).tolist(), key=lambda i: float(load[i]))
        return [*starting, *ready][:n]

    def _scale(self, pool: _SimulatedPool, wanted: int, now: float) -> None:
        wanted = self._bounded(pool.kind, wanted)
        have = (
            len(pool.places(STARTING))
            + len(pool.places(READY))
            + sum(p.becomes.get(i) == pool.kind for p in self._pools for i in p.becomes)
        )
        if wanted != pool.desired:
            self.actions += 1
            pool.desired = wanted
        for _ in range(wanted - have):
            self.starts += 1
            if self._full():
                pool.unplaced[self._create(pool, now, math.inf)] = now
                continue
            delay_s = self._cold_start_s(pool)
            pool.cold_starts_s.append(delay_s)
            self._create(pool, now, delay_s)
        for place in self._victims(pool, max(0, have - wanted)):
            self._release(pool, place, now)

    def _flip(self, n: int, now: float) -> None:
        """Move ready workers between the pools: from prefill to decode if n > 0."""
        prefill, decode = self._pools
        giver, taker = (prefill, decode) if n > 0 else (decode, prefill)
        ready = [i for i in self._victims(giver, PLACES) if giver.workers.state[i] == READY]
        for place in ready[: min(abs(n), len(ready) - 1)]:
            self.flips += 1
            giver.becomes[place] = taker.kind
            self._release(giver, place, now)

    # ---- what a policy sees ----

    def _pods(self, pool: _SimulatedPool, now: float) -> Pods:
        starting = pool.places(STARTING)
        ages = tuple(sorted((float(now - pool.born_s[i]) for i in starting), reverse=True))
        ended = len(pool.cold_starts_s) - (len(ages) - len(pool.unplaced))
        known = pool.cold_starts_s[max(0, ended - 8) : max(0, ended)]
        cold = sum(known) / len(known) if known else math.nan
        unplaced = tuple(sorted((now - since_s for since_s in pool.unplaced.values()), reverse=True))
        return Pods(pool.desired, len(pool.places(READY)), ages, len(pool.places(DRAINING)), cold, unplaced)

    def _signals(self, now: float) -> tuple[PrefillSignals, DecodeSignals]:
        kernel.settle(self._compiled, now)
        count = self.counters
        grown = count.since(self._last_count)
        self._last_count = count
        return prefill_signals(self.columns, count, grown), decode_signals(self.columns, count, grown)

    def _row(self, now: float, p: PrefillSignals, d: DecodeSignals) -> TickRow:
        prefill, decode = self._pools
        return TickRow(
            t_s=now,
            prefill_desired=prefill.desired,
            prefill_ready=len(prefill.places(READY)),
            prefill_paid=prefill.paid(),
            decode_desired=decode.desired,
            decode_ready=len(decode.places(READY)),
            decode_paid=decode.paid(),
            waiting_requests=p.waiting_requests,
            waiting_tokens=p.waiting_tokens,
            decode_waiting=d.waiting_requests,
            running=d.running_requests,
            arrivals=p.arrivals,
            prompt_tokens=p.prompt_tokens,
            generated_tokens=d.generated_tokens,
            ttft_total=p.ttft_total,
            ttft_ok=p.ttft_ok,
            tpot_total=d.tpot_total,
            tpot_ok=d.tpot_ok,
        )

    # ---- the run ----

    def start_sizes(self) -> tuple[int, int]:
        """Return the workers of each pool for the first ten minutes at 60 % utilisation."""
        s, p, trace = self.setup, self.setup.profile, self.trace
        first = trace.arrival_s < 600.0
        n = max(int(first.sum()), 1)
        span_s = min(600.0, max(trace.span_s, 1.0))
        work = np.maximum(trace.prompt_tokens - trace.cached_tokens, 1)[first].astype(float)
        tokens, squares = work.sum(), (work * work).sum()
        batches = p.a_s * tokens / p.batch_tokens
        prefill = (p.b_s_per_token * tokens + p.c_s_per_token2 * squares + batches) / span_s
        output = float(trace.output_tokens[first].sum())
        kv = float((trace.prompt_tokens + trace.output_tokens / 2)[first].sum()) / n
        decode = output / span_s / p.decode_tokens_per_s(s.tpot_s, kv)
        return self._bounded(PREFILL, math.ceil(prefill / 0.6)), self._bounded(DECODE, math.ceil(decode / 0.6))

    def _bounded(self, kind: int, workers: int) -> int:
        return max(self.setup.least(kind), min(self.setup.most, workers))

    def run(self, policy: Policy) -> Cluster:
        """Serve the whole trace and return itself.

        Decisions end with the last arrival, serving when everything has ended.
        """
        setup = self.setup
        for pool, n in zip(self._pools, setup.initial or self.start_sizes(), strict=True):
            pool.desired = n
            for _ in range(n):
                self._create(pool, 0.0, 0.0)
        seen: list[tuple[PrefillSignals, DecodeSignals]] = []
        end_s, now = self.trace.span_s, 0.0
        while now < end_s:
            now += setup.interval_s
            kernel.advance(self._compiled, now)
            self._collect_exits(now)
            self._place(now)
            seen.append(self._signals(now))
            self._rows.append(self._row(now, *seen[-1]))
            policy_sees = self._observe(seen, now)
            if policy_sees is not None:
                self._apply(policy(policy_sees), now)
        for pool in self._pools:
            for place in np.flatnonzero(pool.workers.state != EMPTY).tolist():
                self._leave_queue(pool, place, now)
                self._pay(pool, place, now)
        self._finish(now)
        return self

    def _finish(self, now: float) -> None:
        """Serve what is left on the fleet as it is, unpaid.

        Where workers die, others are started for them.
        """
        status, paid = self.requests.status, self.gpu_s
        end_s = now + _LAST_S
        while self.setup.failures_per_worker_hour and now < end_s and (status == PENDING).any():
            now += self.setup.interval_s
            kernel.advance(self._compiled, now)
            self._collect_exits(now)
            for pool in self._pools:
                self._scale(pool, pool.desired, now)
        kernel.advance(self._compiled, end_s)
        self.gpu_s = paid

    def _observe(self, seen: list[tuple[PrefillSignals, DecodeSignals]], now: float) -> Observation | None:
        if len(seen) <= self.setup.lag:
            return None
        prefill, decode = seen[-1 - self.setup.lag]
        if any(begin <= now < end for begin, end in self.setup.blind_s):
            prefill, decode = PrefillSignals(Pods(0, 0)), DecodeSignals(Pods(0, 0))
        prefill = replace(prefill, pods=self._pods(self._pools[PREFILL], now))
        decode = replace(decode, pods=self._pods(self._pools[DECODE], now))
        return Observation(now, self.setup.interval_s, prefill, decode)

    def _apply(self, targets: Targets, now: float) -> None:
        if targets.flip:
            self._flip(targets.flip, now)
            self._collect_exits(now)
        for pool, wanted in zip(self._pools, (targets.prefill, targets.decode), strict=True):
            self._scale(pool, wanted, now)
        self._collect_exits(now)
        self._place(now)

    @property
    def series(self) -> TickTable:
        """The ticks so far."""
        return TickTable(np.array(self._rows))


def _rules(setup: Setup) -> Rules:
    return Rules(
        tpot_s=setup.tpot_s,
        drop_s=setup.drop_s,
        link_tokens_per_s=setup.link_tokens_per_s,
        aligned=setup.aligned,
        by_deadline=setup.queue_order == EARLIEST_DEADLINE,
        patience_s=min(setup.patience_s, setup.drop_s / 3),
    )
