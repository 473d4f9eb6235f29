"""PURE: The predictive policy.

It decides how many workers each pool should have from forecasts of the pool's work and a price for
every missed objective. For each pool, in workers:

    demand(t)  = work that arrives per second
                 / work that one worker does per second within the objective
    forecast   = demand one cold start (and three scrapes) ahead, with a histogram of the errors
                 of such forecasts
    M(n)       = expected share of requests that miss their objective with n workers: the
                 histogram folded with a curve of misses by utilisation, which is learned from
                 the pool's own requests
    wanted     = the n that minimises  n + price * forecast * M(n), where misses that come
                 together count more

The price controls the error budget. It rises while more requests miss than the budget allows and
falls while fewer do, by the misses of the last minutes. Misses are therefore accepted where it is
expensive to avoid them (the last worker of a small pool) and avoided where it is cheap.

Workers that are starting count as capacity. Scaling down goes to the largest `wanted` of the last
one and a half cold starts. If a role flip is faster than a cold start, the workers that one pool
holds beyond its need go to the other pool as soon as that pool wants more. Without metrics nothing
is ever scaled down. The speed of a worker is learned from the workers' own measurements
(`learning`); the profile in the settings is only the starting point.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

from disagg_operator.autoscaling.policy import forecast, learning, miss_curve
from disagg_operator.autoscaling.policy.forecast import MOST, SPELL_S, TINY
from disagg_operator.autoscaling.policy.memory import Peak, PoolLimits, PoolState, Settings, State
from disagg_operator.autoscaling.policy.observation import Observation, Pods, PrefillSignals, Targets
from disagg_operator.autoscaling.policy.sizing import (
    Outlook,
    PoolSizing,
    hold,
    join,
    limit_of,
    plan,
    shortage,
)
from disagg_operator.performance.profile import Profile
from disagg_wire.roles import DECODE, PREFILL

__all__ = ["Peak", "PoolLimits", "PoolState", "Settings", "State", "step"]

_WARM_UP_S = SPELL_S  # until then the estimators know little: not below the starting size
_BLIND_FORECAST_S = SPELL_S / 2
_LENGTH_MEMORY_S = SPELL_S  # of outputs and contexts
_MOST_BLIND_RISE = 2.0
_BUDGET_MEMORY_S = 450.0
_WITHIN = 0.97  # of the objective, for what a step does not show
_SCRAPES = 3.0  # until a rise is seen, believed and acted upon
_OUTPUT_TOKENS, _KV_TOKENS = 200.0, 1000.0  # of a request, until they are known


def step(settings: Settings, o: Observation, state: State) -> tuple[Targets, State]:
    """Process one observation, and return the number of workers for each pool and the new state."""
    o = _clean(o)
    if math.isnan(state.began_s):
        state = replace(state, began_s=o.now_s, began_with=(o.prefill.pods.replicas, o.decode.pods.replicas))
    if o.blind or not o.interval_s > 0:
        return _blind(settings, o, state), state
    settings, state = _learn(settings, o, replace(state, seen_s=o.now_s))
    settings, o, below_step = _within_reach(settings, o, state)
    prefill, prefill_state = _prefill(settings, o, state)
    decode, decode_state = _decode(settings, o, state)
    state = replace(state, prefill=prefill_state, decode=decode_state)
    if _flips(settings, o):
        _give(prefill, decode, "decode")
        _give(decode, prefill, "prefill")
    if o.now_s - state.began_s < _WARM_UP_S:
        for pool, began_with in zip((prefill, decode), state.began_with, strict=True):
            least = min(began_with, pool.limits.most)
            if pool.wanted < least:
                pool.wanted, pool.reason = least, "still learning: not below the starting size"
    join(settings, prefill, decode, full=o.now_s < state.full_until_s)
    if prefill.lost or decode.lost:
        state = replace(state, full_until_s=o.now_s + SPELL_S)
    unmet = {PREFILL: shortage(prefill), DECODE: below_step or shortage(decode)}
    limits = {PREFILL: limit_of(prefill), DECODE: limit_of(decode)}
    state = replace(state, seen_with=(prefill.wanted, decode.wanted))
    numbers = {f"prefill_{k}": v for k, v in prefill.numbers.items()} | {
        f"decode_{k}": v for k, v in decode.numbers.items()
    }
    return Targets(
        prefill.wanted, decode.wanted, f"prefill: {prefill.reason}; decode: {decode.reason}", numbers,
        _flip(settings, o, prefill, decode),
        {pool: words for pool, words in unmet.items() if words}, {pool: word for pool, word in limits.items() if word},
    ), state  # fmt: skip


def _clean(value: Any) -> Any:
    """Replace infinite and negative signals by NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) and value >= 0 else math.nan
    if is_dataclass(value) and not isinstance(value, type):
        kept = {"now_s", "interval_s", "starting_ages_s", "unplaced_s"}
        return replace(value, **{f.name: _clean(getattr(value, f.name)) for f in fields(value) if f.name not in kept})
    return value


def _learn(settings: Settings, o: Observation, state: State) -> tuple[Settings, State]:
    """Update what is learned from an observation.

    The lengths of outputs and contexts are learned from requests that ended and from those that are
    running, and the profile from the work that workers have done.
    """
    d = o.decode
    gain = 1 - math.exp(-o.interval_s / _LENGTH_MEMORY_S)
    output, kv = state.output_tokens, state.kv_per_sequence
    if d.completions >= 1 and d.completed_output_tokens > 0:
        mean = min(MOST, d.completed_output_tokens / d.completions)
        output = mean if math.isnan(output) else output + gain * (mean - output)
    if d.running_requests >= 1 and d.kv_tokens > 0:
        held = min(MOST, d.kv_tokens / d.running_requests)
        kv = held if math.isnan(kv) else kv + gain * (held - kv)
    per_s = min(MOST, o.prefill.arrivals / o.interval_s)
    arrivals = forecast.update(state.arrivals, o.now_s, o.interval_s, per_s, settings.tuning)
    state = replace(state, output_tokens=output, kv_per_sequence=kv, arrivals=arrivals)
    if not settings.learn:
        return settings, state
    before = learning.profile(state.learned, settings.profile)
    learned = learning.observe(state.learned, settings.profile, o)
    now = learning.profile(learned, settings.profile)
    # Demand is measured in workers. If a worker turns out to be faster, the remembered demand
    # shrinks.
    p = o.prefill
    work = [_prefill_work_s(x, p) for x in (before, now)]
    rate = [_decode_rate(settings, x, state) for x in (now, before)]
    state = replace(state, learned=learned, prefill=_scaled(state.prefill, *work), decode=_scaled(state.decode, *rate))
    return replace(settings, profile=now), state


def _scaled(pool: PoolState, before: float, now: float) -> PoolState:
    factor = now / before if before > 0 else math.nan
    if not TINY < factor < 1 / TINY or factor == 1:
        return pool
    return replace(pool, demand=forecast.scaled(pool.demand, factor), load=pool.load * factor)


def _decode_rate(settings: Settings, profile: Profile, state: State) -> float:
    return profile.decode_tokens_per_s(_WITHIN * settings.tpot_s, _kv_per_sequence(state))


def _within_reach(settings: Settings, o: Observation, state: State) -> tuple[Settings, Observation, str]:
    """Return settings and an observation for the best that is possible, and why it falls short.

    No number of workers keeps a TPOT below the time of a step with a single sequence, so decode is
    sized for twice that time: then half of a step is shared by its sequences. The misses of such an
    objective are no reason for more workers.
    """
    profile = settings.profile
    handover_s = profile.handover_s / max(1.0, _output_tokens(state) - 1)
    least_s = profile.step_s(1.0, _kv_per_sequence(state)) + handover_s
    if settings.tpot_s >= least_s:
        return settings, o, ""
    unmet = (
        f"{settings.tpot_s:.4g} s per token can't be met: a step with a single sequence takes {least_s:.4g} s; "
        f"the pool is sized for {2 * least_s:.4g} s"
    )
    decode = replace(o.decode, tpot_total=math.nan, tpot_ok=math.nan)
    return replace(settings, tpot_s=2 * least_s), replace(o, decode=decode), unmet


def _output_tokens(state: State) -> float:
    return _OUTPUT_TOKENS if math.isnan(state.output_tokens) else state.output_tokens


def _kv_per_sequence(state: State) -> float:
    return _KV_TOKENS if math.isnan(state.kv_per_sequence) else state.kv_per_sequence


def _prefill(settings: Settings, o: Observation, state: State) -> tuple[PoolSizing, PoolState]:
    p, profile, pool = o.prefill, settings.profile, state.prefill
    work = _prefill_work_s(profile, p) / o.interval_s
    if not work < MOST:
        return hold(p.pods, settings.prefill, "prompt lengths are not known: holding"), pool
    backlog_s, overrun = _waiting_s(settings, p), _overrun(settings, o)
    pool = replace(pool, demand=forecast.update(pool.demand, o.now_s, o.interval_s, work, settings.tuning))
    pool = _judge(
        settings,
        pool,
        o,
        p.pods,
        pool.demand.level + backlog_s / settings.tuning.window_s,
        p.ttft_total,
        p.ttft_ok,
        0.0,
    )
    # More prefill workers would not help requests for which the decode pool has no room.
    backlog_s *= 1 - _held(p)
    outlook = Outlook(
        _cold_s(settings, p.pods), _SCRAPES * o.interval_s, p.arrivals / o.interval_s, backlog_s, state.began_s,
        full=o.now_s < state.full_until_s, shown=forecast.least(pool.demand, overrun=overrun),
    )  # fmt: skip
    return plan(settings, PREFILL, o, pool, outlook)


def _waiting_s(settings: Settings, p: PrefillSignals) -> float:
    """Return the seconds in which one worker would prefill what waits."""
    profile = settings.profile
    mean2 = p.prompt_tokens_squared / p.prompt_tokens if p.prompt_tokens >= 1 else 0.0
    queued = p.waiting_tokens if p.waiting_tokens < MOST else 0.0
    return queued * (profile.b_s_per_token + profile.a_s / profile.batch_tokens + profile.c_s_per_token2 * mean2)


def _overrun(settings: Settings, o: Observation) -> bool:
    """Return whether more prompts wait than the prefill workers can do in an interval."""
    return _waiting_s(settings, o.prefill) > o.interval_s * o.prefill.pods.ready


def _prefill_work_s(profile: Profile, p: PrefillSignals) -> float:
    """Return the seconds of one worker for the prompts that have arrived for the prefill pool."""
    to_decode = p.to_decode if p.to_decode <= p.arrivals else 0.0
    return profile.prefill_work_s(p.arrivals - to_decode, p.prompt_tokens, p.prompt_tokens_squared)


def _held(p: PrefillSignals) -> float:
    """Return the share of the waiting prompts that wait because the decode pool is nearly full."""
    return 1 - min(1.0, p.batch_share) if p.batch_share >= 0 else 0.0


def _decode(settings: Settings, o: Observation, state: State) -> tuple[PoolSizing, PoolState]:
    """Return the size that the decode pool should have.

    The demand is the tokens generated per second, of short and of long outputs alike, and the time
    that the rests of prompts take which the workers compute themselves. What has arrived at prefill
    is the demand that follows, also while prefill cannot do it yet.
    """
    d, pool, interval_s = o.decode, state.decode, o.interval_s
    rate = _decode_rate(settings, settings.profile, state)
    made = d.generated_tokens / interval_s / rate
    # Full workers make no more tokens, however many sequences they have.
    full = d.running_requests / rate / (_WITHIN * settings.tpot_s)
    made = max(made, full) if full < MOST else made
    made += d.rest_s / interval_s if d.rest_s >= 0 else 0.0
    if not made < MOST:
        return hold(d.pods, settings.decode, "generated tokens are not known: holding"), pool
    output = _output_tokens(state)
    duration_s = output * (settings.profile.d_s + settings.tpot_s) / 2
    pool = _judge(settings, pool, o, d.pods, made, d.tpot_total, d.tpot_ok, duration_s)
    pool = replace(pool, demand=forecast.update(pool.demand, o.now_s, interval_s, made, settings.tuning))
    # Requests that are prefilled but not admitted, or not prefilled for lack of room, need decode
    # workers and not prefill workers.
    held = _held(o.prefill) * o.prefill.waiting_requests
    waiting = sum(n for n in (d.waiting_requests, held) if n < MOST)
    coming = max(state.arrivals.level, forecast.least(state.arrivals, overrun=_overrun(settings, o))) * output / rate
    outlook = Outlook(
        _cold_s(settings, d.pods), _SCRAPES * interval_s, o.prefill.arrivals / interval_s, waiting * output / rate,
        state.began_s, o.now_s < state.full_until_s, coming, forecast.least(pool.demand),
    )  # fmt: skip
    found, pool = plan(settings, DECODE, o, pool, outlook)
    found.numbers |= {
        "worker_tokens_per_s": rate, "output_tokens": output, "inflow": coming,
    }  # fmt: skip
    return found, pool


def _cold_s(settings: Settings, pods: Pods) -> float:
    cold_s = settings.cold_start_s if math.isnan(pods.cold_start_s) else pods.cold_start_s
    return min(cold_s, forecast.DAY_S)


def _judge(
    settings: Settings,
    pool: PoolState,
    o: Observation,
    pods: Pods,
    demand: float,
    total: float,
    ok: float,
    memory_s: float,
) -> PoolState:
    """Learn from the interval's misses.

    A miss of a long request is attributed to the utilisation during its whole life (`memory_s`).
    """
    keep = 0.0 if math.isnan(pool.load) else math.exp(-o.interval_s / max(memory_s, TINY))
    load = demand + keep * ((pool.load if keep else demand) - demand)
    if math.isnan(total) or math.isnan(ok):
        return replace(pool, load=load)
    fade = math.exp(-o.interval_s / _BUDGET_MEMORY_S)
    curve = miss_curve.observe(pool.curve, miss_curve.slack(pods.ready, load), total, ok, o.interval_s)
    missed, counted = pool.missed * fade + total - ok, pool.counted * fade + total
    return replace(pool, load=load, curve=curve, missed=missed, counted=counted)


def _flips(settings: Settings, o: Observation) -> bool:
    """Return whether a role flip is faster than starting a worker."""
    return settings.role_flip_s is not None and settings.role_flip_s < _cold_s(settings, o.decode.pods)


def _give(giver: PoolSizing, taker: PoolSizing, name: str) -> None:
    """Let the pool `giver` give workers that it does not need to the pool `taker`.

    A pool holds workers beyond its need as a reserve, because it would otherwise have to start
    workers when its work rises. If the other pool must start workers now, they are of more use
    there, and come back as fast.
    """
    n = min(taker.wanted - taker.pods.replicas, giver.pods.replicas - giver.need)
    if n > 0 and giver.pods.replicas - n < giver.wanted:
        giver.wanted, giver.reason = giver.pods.replicas - n, f"{name} has more use for {n}"


def _flip(settings: Settings, o: Observation, prefill: PoolSizing, decode: PoolSizing) -> int:
    """Return how many workers should flip from prefill to decode, or minus those from decode to
    prefill.
    """
    if not _flips(settings, o):
        return 0
    more_decode, more_prefill = decode.wanted - decode.pods.replicas, prefill.wanted - prefill.pods.replicas
    return max(0, min(more_decode, -more_prefill)) - max(0, min(more_prefill, -more_decode))


def _blind(settings: Settings, o: Observation, state: State) -> Targets:
    """Return the targets while there are no metrics.

    The pools are held, whatever ratio they have. After a while they rise to the usual need at this
    time of day, relative to the workers that were wanted when metrics were last available. They
    never shrink.
    """
    reason, rises = "no metrics: holding", False
    plans = []
    pools = ((o.prefill.pods, settings.prefill, state.prefill), (o.decode.pods, settings.decode, state.decode))
    for (pods, limits, pool), had in zip(pools, state.seen_with, strict=True):
        n = max(limits.least, min(limits.most, pods.replicas))
        plans.append(PoolSizing(pods, replace(limits, least=n), n, reason))
        if not math.isnan(state.seen_s) and o.now_s - state.seen_s > _BLIND_FORECAST_S:
            usual, then = (
                forecast.seasonal(pool.demand, o.now_s + settings.cold_start_s),
                forecast.seasonal(pool.demand, state.seen_s),
            )
            if then > 0 and usual > then and pool.demand.level > 0:
                plans[-1].wanted = max(n, min(limits.most, math.ceil(had * min(usual / then, _MOST_BLIND_RISE))))
                reason, rises = "no metrics for 5 minutes: at least what this time of day usually needs", True
    if rises:
        join(settings, *plans)
    return Targets(plans[0].wanted, plans[1].wanted, reason)
