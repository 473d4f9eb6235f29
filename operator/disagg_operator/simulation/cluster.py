"""A deployment in simulated time: workers start, serve, drain and end as a policy says; every request and every GPU-second is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals, Targets
from disagg_operator.performance.profile import Profile
from disagg_operator.simulation import kernel, state
from disagg_operator.simulation.ordering import EARLIEST_DEADLINE, FIRST_COME, ORDERS
from disagg_operator.simulation.traces import Trace

Policy = Callable[[Observation], Targets]
PREFILL, DECODE = 0, 1
_LAST_S = 86_400.0  # after the last arrival everything ends within a day


@dataclass(frozen=True, slots=True)
class Setup:
    """The cluster and its rules; the defaults are those of the benchmark.

    ttft: at most `ttft_least_s` or `ttft_factor` times the prompt's isolated prefill, whichever is more. lag: how many scrapes old values
    are. warm_workers: a pool's workers beyond so many also wait for a node. blind_s: spans without metrics. unlimited grace: math.inf.
    queue_order: of the prompts that wait for prefill, one of `ordering.ORDERS`; patience_s: after so long a late one comes first at times.
    aligned: sequences join a decode batch between two steps, as in an engine, not at once. routers: none is ever busy where it is 0.
    """

    profile: Profile
    tpot_s: float = 0.060
    ttft_least_s: float = 1.0
    ttft_factor: float = 5.0
    interval_s: float = 15.0
    lag: int = 1
    cold_start_s: tuple[float, float] = (60.0, 180.0)
    warm_workers: int | None = None
    node_start_s: tuple[float, float] = (180.0, 300.0)
    grace_s: float = 600.0
    drop_s: float = 60.0
    queue_order: str = FIRST_COME
    patience_s: float = 20.0
    least: int = 1
    most: int = 40
    initial: tuple[int, int] | None = None
    unscored_s: float = 600.0
    failures_per_worker_hour: float = 0.0
    link_tokens_per_s: float = 0.0
    blind_s: tuple[tuple[float, float], ...] = ()
    flip_s: float = 10.0
    aligned: bool = False
    routers: int = 0
    seed: int = 0


@dataclass
class _Pool:
    """Arrays of the kernel for one pool, and what only the cluster knows."""

    kind: int
    state: Any
    next_s: Any
    ready_s: Any
    death_s: Any
    exit_s: Any
    born_s: Any = field(default_factory=lambda: np.zeros(state.PODS))
    becomes: dict[int, int] = field(default_factory=dict)  # draining worker -> pool that it flips to
    desired: int = 0
    cold_starts_s: list[float] = field(default_factory=list)

    def of(self, kind: int) -> Any:
        return np.flatnonzero(self.state == kind)


@dataclass(frozen=True)
class Series:
    """One row a tick: time and, per pool, what was desired, ready and paid for; queue and running; the tick's arrivals and SLO counts."""

    columns: tuple[str, ...]
    rows: Any

    def __getitem__(self, name: str) -> Any:
        return self.rows[:, self.columns.index(name)]

    def columns_as_lists(self) -> dict[str, list[float]]:
        return {name: self.rows[:, i].tolist() for i, name in enumerate(self.columns)}


_COLUMNS = (
    "t_s", "prefill_desired", "prefill_ready", "prefill_paid", "decode_desired", "decode_ready", "decode_paid", "waiting_requests",
    "waiting_tokens", "decode_waiting", "running", "arrivals", "prompt_tokens", "generated_tokens", "ttft_total", "ttft_ok", "tpot_total",
    "tpot_ok",
)  # fmt: skip


class Cluster:
    """One simulation. `run` may be called once."""

    def __init__(self, trace: Trace, setup: Setup) -> None:
        if setup.queue_order not in ORDERS:
            raise ValueError(f"queue_order: {setup.queue_order!r} is none of {', '.join(ORDERS)}")
        p = setup.profile
        self.trace, self.setup = trace, setup
        work = np.maximum(trace.prompt_tokens - trace.cached_tokens, 1).astype(np.float64)
        isolated = p.a_s + p.b_s_per_token * work + p.c_s_per_token2 * work * work
        limit = np.maximum(setup.ttft_least_s, setup.ttft_factor * isolated)
        fixed = (
            p.a_s, p.b_s_per_token, p.c_s_per_token2, p.d_s, p.e_s_per_sequence, p.f_s_per_token, p.kv_tokens, p.batch_tokens,
            p.max_running, setup.tpot_s, setup.drop_s, p.transfer_s_per_token, setup.link_tokens_per_s,
            float(setup.aligned), p.overhead_s, p.handover_s, p.batch_wait_s, p.batch_full_tokens, p.take_in_s,
            p.h_s_per_sequence2, float(setup.queue_order == EARLIEST_DEADLINE), min(setup.patience_s, setup.drop_s / 3),
        )  # fmt: skip
        entry_s = state.entries(trace.arrival_s, p.front_s / setup.routers if setup.routers else 0.0)
        self.sim = state.make(trace.arrival_s, entry_s, trace.prompt_tokens, trace.cached_tokens, trace.output_tokens, limit, fixed)
        s = self.sim
        self._random = np.random.default_rng(setup.seed)
        self._pools = (
            _Pool(PREFILL, s.p_state, s.p_next_s, s.p_ready_s, s.p_death_s, s.exit_s[0]),
            _Pool(DECODE, s.d_state, s.d_next_s, s.d_ready_s, s.d_death_s, s.exit_s[1]),
        )
        self.gpu_s = 0.0
        self.starts = self.actions = self.flips = 0
        self._rows: list[tuple[float, ...]] = []
        self._last_count: list[float] = s.tally.tolist()

    # ---- workers ----

    def _create(self, pool: _Pool, now: float, delay_s: float) -> None:
        place = int(np.flatnonzero((pool.state == state.NONE) & ~np.isfinite(pool.exit_s))[0])
        pool.born_s[place] = now
        pool.ready_s[place] = now + delay_s
        rate = self.setup.failures_per_worker_hour / 3600
        pool.death_s[place] = now + self._random.exponential(1 / rate) if rate else np.inf
        pool.next_s[place] = min(pool.ready_s[place], pool.death_s[place])
        pool.state[place] = state.STARTING
        if pool.kind == DECODE:
            self.sim.d_limit_s[place] = np.inf
        which = state.P_PLACES if pool.kind == PREFILL else state.D_PLACES
        self.sim.tally[which] = max(self.sim.tally[which], place + 1)

    def _cold_start_s(self, pool: _Pool) -> float:
        seconds = float(self._random.uniform(*self.setup.cold_start_s))
        if self.setup.warm_workers is not None and (pool.state != state.NONE).sum() >= self.setup.warm_workers:
            seconds += float(self._random.uniform(*self.setup.node_start_s))
        return seconds

    def _pay(self, pool: _Pool, place: int, until: float) -> None:
        self.gpu_s += (until - pool.born_s[place]) * self.setup.profile.gpus

    def _collect_exits(self, now: float) -> None:
        for pool in self._pools:
            for place in np.flatnonzero(np.isfinite(pool.exit_s)).tolist():
                self._pay(pool, place, float(pool.exit_s[place]))
                pool.exit_s[place] = np.inf
                goes = pool.becomes.pop(place, None)
                if goes is not None:
                    self._create(self._pools[goes], now, self.setup.flip_s)

    def _release(self, pool: _Pool, place: int, now: float) -> None:
        """A worker starts to drain; one that computes nothing is gone at once."""
        s = self.sim
        idle = s.p_from[place] == s.p_to[place] if pool.kind == PREFILL else s.d_batch[place] == 0
        if pool.state[place] == state.STARTING or idle:
            pool.state[place], pool.next_s[place], pool.exit_s[place] = state.NONE, np.inf, now
        else:
            pool.state[place] = state.DRAINING
            if pool.kind == DECODE:
                s.d_limit_s[place] = now + self.setup.grace_s
                pool.next_s[place] = min(pool.next_s[place], s.d_limit_s[place])

    def _victims(self, pool: _Pool, n: int) -> list[int]:
        """Those that start, youngest first, then the idlest."""
        starting = sorted(pool.of(state.STARTING).tolist(), key=lambda i: -pool.born_s[i])
        s = self.sim
        load = s.d_batch if pool.kind == DECODE else np.where(s.p_from == s.p_to, 0.0, s.p_ready_s)
        ready = sorted(pool.of(state.READY).tolist(), key=lambda i: float(load[i]))
        return [*starting, *ready][:n]

    def _scale(self, pool: _Pool, wanted: int, now: float) -> None:
        wanted = max(self.setup.least, min(self.setup.most, wanted))
        have = (
            len(pool.of(state.STARTING))
            + len(pool.of(state.READY))
            + sum(p.becomes.get(i) == pool.kind for p in self._pools for i in p.becomes)
        )
        if wanted != pool.desired:
            self.actions += 1
            pool.desired = wanted
        for _ in range(wanted - have):
            self.starts += 1
            delay_s = self._cold_start_s(pool)
            pool.cold_starts_s.append(delay_s)
            self._create(pool, now, delay_s)
        for place in self._victims(pool, max(0, have - wanted)):
            self._release(pool, place, now)

    def _flip(self, n: int, now: float) -> None:
        """Move ready workers between the pools: > 0 from prefill to decode."""
        giver, taker = (self._pools[PREFILL], self._pools[DECODE]) if n > 0 else (self._pools[DECODE], self._pools[PREFILL])
        ready = [i for i in self._victims(giver, state.PODS) if giver.state[i] == state.READY]
        for place in ready[: min(abs(n), len(ready) - 1)]:
            self.flips += 1
            giver.becomes[place] = taker.kind
            self._release(giver, place, now)

    # ---- what a policy sees ----

    def _pods(self, pool: _Pool, now: float) -> Pods:
        starting = pool.of(state.STARTING)
        ages = tuple(sorted((float(now - pool.born_s[i]) for i in starting), reverse=True))
        known = pool.cold_starts_s[-8 - len(ages) : len(pool.cold_starts_s) - len(ages)]
        cold = sum(known) / len(known) if known else math.nan
        return Pods(pool.desired, len(pool.of(state.READY)), ages, len(pool.of(state.DRAINING)), cold)

    def _signals(self, now: float) -> tuple[PrefillSignals, DecodeSignals]:
        s = self.sim
        kernel.settle(s, now)
        count = s.tally.tolist()  # plain floats: a policy computes with them much faster
        delta = [a - b for a, b in zip(count, self._last_count, strict=True)]
        self._last_count = count
        busy = s.p_to - s.p_from
        serving = (s.d_state == state.READY) | (s.d_state == state.DRAINING)
        no_pods = Pods(0, 0)
        prefill = PrefillSignals(
            no_pods, delta[state.ARRIVALS], delta[state.WORK], delta[state.WORK2],
            count[state.P_TAIL] - count[state.P_HEAD] + count[state.A_TAIL] - count[state.A_HEAD], count[state.QUEUED_TOKENS],
            float(busy.sum()),
            delta[state.P_BUSY_S], delta[state.TTFT_ALL] + delta[state.DROPS], delta[state.TTFT_OK],
            delta[state.BATCHES], delta[state.BATCH_TOKENS], delta[state.BATCH_TOKENS2], delta[state.P_BUSY_S],
        )  # fmt: skip
        decode = DecodeSignals(
            no_pods, count[state.D_TAIL] - count[state.D_HEAD], float(s.d_batch[serving].sum()), float(s.d_kv[serving].sum()),
            float(self.setup.profile.kv_tokens), delta[state.GENERATED], delta[state.ENDED], delta[state.ENDED_TOKENS],
            delta[state.ENDED_KV],
            delta[state.TPOT_ALL] + delta[state.LOST], delta[state.TPOT_OK],
            delta[state.STEPS], delta[state.STEP_SEQUENCES], delta[state.STEP_KV], delta[state.STEP_S],
        )  # fmt: skip
        return prefill, decode

    def _row(self, now: float, p: PrefillSignals, d: DecodeSignals) -> None:
        pre, dec = self._pools
        paid = [int((pool.state != state.NONE).sum()) for pool in self._pools]
        ready = [len(pool.of(state.READY)) for pool in self._pools]
        self._rows.append((
            now, pre.desired, ready[0], paid[0], dec.desired, ready[1], paid[1], p.waiting_requests, p.waiting_tokens, d.waiting_requests,
            d.running_requests, p.arrivals, p.prompt_tokens, d.generated_tokens, p.ttft_total, p.ttft_ok, d.tpot_total, d.tpot_ok,
        ))  # fmt: skip

    # ---- the run ----

    def start_sizes(self) -> tuple[int, int]:
        """Enough for the first ten minutes at 60 % utilisation."""
        s, p = self.setup, self.setup.profile
        first = self.trace.arrival_s < 600.0
        n = max(int(first.sum()), 1)
        span_s = min(600.0, max(self.trace.span_s, 1.0))
        work = np.maximum(self.trace.prompt_tokens - self.trace.cached_tokens, 1)[first].astype(float)
        prefill = (p.b_s_per_token * work.sum() + p.c_s_per_token2 * (work * work).sum() + p.a_s * work.sum() / p.batch_tokens) / span_s
        output = float(self.trace.output_tokens[first].sum())
        kv = float((self.trace.prompt_tokens + self.trace.output_tokens / 2)[first].sum()) / n
        decode = output / span_s / p.decode_tokens_per_s(s.tpot_s, kv)
        return tuple(max(s.least, min(s.most, math.ceil(u / 0.6))) for u in (prefill, decode))  # type: ignore[return-value]

    def run(self, policy: Policy) -> Cluster:
        """Serve the whole trace; decisions end with the last arrival, serving when everything has ended. Returns itself."""
        s, setup = self.sim, self.setup
        for pool, n in zip(self._pools, setup.initial or self.start_sizes(), strict=True):
            pool.desired = n
            for _ in range(n):
                self._create(pool, 0.0, 0.0)
        seen: list[tuple[PrefillSignals, DecodeSignals]] = []
        end_s, now = self.trace.span_s, 0.0
        while now < end_s:
            now += setup.interval_s
            kernel.advance(s, now)
            self._collect_exits(now)
            seen.append(self._signals(now))
            self._row(now, *seen[-1])
            policy_sees = self._observe(seen, now)
            if policy_sees is not None:
                self._apply(policy(policy_sees), now)
        for pool in self._pools:
            for place in np.flatnonzero(pool.state != state.NONE).tolist():
                self._pay(pool, place, now)
        self._finish(now)
        return self

    def _finish(self, now: float) -> None:
        """Serve what is left on the fleet as it is, unpaid; where workers die, others are started for them."""
        s, paid = self.sim, self.gpu_s
        end_s = now + _LAST_S
        while self.setup.failures_per_worker_hour and now < end_s and (s.status == state.PENDING).any():
            now += self.setup.interval_s
            kernel.advance(s, now)
            self._collect_exits(now)
            for pool in self._pools:
                self._scale(pool, pool.desired, now)
        kernel.advance(s, end_s)
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

    @property
    def series(self) -> Series:
        return Series(_COLUMNS, np.array(self._rows))
