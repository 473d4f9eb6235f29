"""PURE: the predictive policy. How many workers each pool should have, from forecasts of its work and a price on every missed objective.

For each pool, in workers:

    demand(t)  = work that comes in per second / work that one worker does per second within the objective
    forecast   = demand one cold start (and three scrapes) ahead, with a histogram of how wrong such forecasts have been
    M(n)       = expected share of requests that miss their objective with n workers: the histogram folded with a curve of misses by
                 utilisation, which is learned from the pool's own requests
    wanted     = the n that minimises  n + price * forecast * M(n), where misses that come together count more

The price steers the error budget: it rises while more requests miss than the budget allows and falls while fewer do. So misses are accepted
where avoiding them is dear (the last worker of a small pool) and avoided where it is cheap. Workers that start count as capacity.
Scaling down goes to the largest `wanted` of the last one and a half cold starts. Without metrics nothing is ever scaled down.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from disagg_operator.autoscaling import capacity, forecast
from disagg_operator.autoscaling.capacity import MissCurve
from disagg_operator.autoscaling.forecast import Forecaster, Tuning
from disagg_operator.autoscaling.observation import Observation, Pods, Targets
from disagg_operator.planning.profile import Profile

_LEARN_S = 180.0  # forecasts made before are not held against the forecaster
_WARM_UP_S = 600.0  # the estimators know nothing yet: not below the starting size
_BLIND_FORECAST_S = 300.0
_OUTPUT_MEMORY_S = 600.0
_DRAIN_S = 30.0  # a backlog shall be gone after this long
_TOGETHER = 10.0  # a miss among many misses weighs up to so many times more: one in a hundred is nothing, a bad minute is an incident
_PRICE_PRIOR_S = 1200.0
_KEEP = 1.5  # cold starts
_BUDGET_MEMORY_S = 3 * 3600.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of one pool and the GPUs of one of its workers."""

    least: int = 1
    most: int = 40
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Peak:
    """A known peak: from `from_s` to `to_s` of each day (seconds, UTC) at least so many workers."""

    from_s: float
    to_s: float
    prefill: int = 0
    decode: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user may set. `budget`: the share of requests that may miss each of the two objectives; `ratio`: least and most decode workers
    per prefill worker; `gpu_budget`: GPUs of both pools together; `cold_start_s`: until it has been measured."""

    profile: Profile
    tpot_s: float
    prefill: PoolLimits = PoolLimits()
    decode: PoolLimits = PoolLimits()
    budget: float = 0.0045
    over_provisioning: float = 1.0
    gpu_budget: int | None = None
    ratio: tuple[float, float] | None = None
    peaks: tuple[Peak, ...] = ()
    cold_start_s: float = 120.0
    role_flip_s: float | None = None  # how long moving a worker between the pools takes; None: never
    price: float = 11.0
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(frozen=True, slots=True)
class PoolState:
    """What is remembered of one pool. `wanted`: (time, n) of the last cold start; `misses`: faded share of requests out of budget."""

    demand: Forecaster = field(default_factory=Forecaster)
    curve: MissCurve = field(default_factory=lambda: MissCurve(0.4, 0.2))
    wanted: tuple[tuple[float, int], ...] = ()
    load: float = math.nan
    missed: float = 0.0
    counted: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """What a step remembers; the empty state is a safe start. `output_tokens`: mean of a request."""

    prefill: PoolState = field(default_factory=PoolState)
    decode: PoolState = field(default_factory=lambda: PoolState(curve=MissCurve(0.0, 0.08)))
    output_tokens: float = math.nan
    kv_per_sequence: float = math.nan
    began_s: float = math.nan
    began_with: tuple[int, int] = (0, 0)
    seen_s: float = math.nan


def to_json(state: State) -> dict[str, Any]:
    """Plain JSON, some 20 KB; NaN as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float):
            return None if math.isnan(value) else float(f"{value:.9g}")
        return value

    return {"version": _VERSION, **plain(asdict(state))}


def from_json(raw: dict[str, Any]) -> State:
    """The state that `to_json` wrote; the empty one for another version or anything that does not fit."""

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    def numbers(values: Any) -> tuple[float, ...]:
        return tuple(map(number, values))

    def forecaster(f: dict[str, Any]) -> Forecaster:
        return Forecaster(
            levels=numbers(f["levels"]), trends=numbers(f["trends"]), updated_s=number(f["updated_s"]),
            recent=tuple((number(at), number(rate)) for at, rate in f["recent"]),
            made=tuple(map(numbers, f["made"])),
            errors=tuple(map(numbers, f["errors"])), skill=numbers(f["skill"]), shape=numbers(f["shape"]),
            shape_seen_s=number(f["shape_seen_s"]),
        )  # fmt: skip

    def pool(p: dict[str, Any]) -> PoolState:
        c = p["curve"]
        curve = MissCurve(number(c["middle"]), number(c["width"]), number(c["weight"]), numbers(c["total"]), numbers(c["missed"]))
        wanted = tuple((number(at), int(n)) for at, n in p["wanted"])
        return PoolState(forecaster(p["demand"]), curve, wanted, number(p["load"]), number(p["missed"]), number(p["counted"]))

    try:
        if raw["version"] != _VERSION:
            return State()
        return State(
            pool(raw["prefill"]), pool(raw["decode"]), number(raw["output_tokens"]), number(raw["kv_per_sequence"]),
            number(raw["began_s"]), (int(raw["began_with"][0]), int(raw["began_with"][1])), number(raw["seen_s"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return State()


# ---- one step ----


@dataclass(slots=True)
class _Plan:
    """One pool's outcome of a step, while it is being put together."""

    pods: Pods
    limits: PoolLimits
    wanted: int
    reason: str
    forecast: float
    price: float
    shares: list[float]
    ratios: list[tuple[float, float]]
    numbers: dict[str, float] = field(default_factory=dict)

    def loss(self, n: int) -> float:
        """What n workers cost, misses included, in workers."""
        return n + self.price * self.forecast * _miss_share(self.forecast, n, self.shares, self.ratios)


def step(settings: Settings, o: Observation, state: State) -> tuple[Targets, State]:
    """Take one observation into account."""
    if math.isnan(state.began_s):
        state = replace(state, began_s=o.now_s, began_with=(o.prefill.pods.replicas, o.decode.pods.replicas))
    if o.blind:
        return _blind(settings, o, state), state
    state = _learn(settings, o, replace(state, seen_s=o.now_s))
    prefill, prefill_state = _prefill(settings, o, state)
    decode, decode_state = _decode(settings, o, state)
    state = replace(state, prefill=prefill_state, decode=decode_state)
    if o.now_s - state.began_s < _WARM_UP_S:
        for plan, began_with in zip((prefill, decode), state.began_with, strict=True):
            least = min(began_with, plan.limits.most)
            if plan.wanted < least:
                plan.wanted, plan.reason = least, "still learning: not below the starting size"
    _join(settings, prefill, decode)
    numbers = {f"prefill_{k}": v for k, v in prefill.numbers.items()} | {f"decode_{k}": v for k, v in decode.numbers.items()}
    reason = f"prefill: {prefill.reason}; decode: {decode.reason}"
    return Targets(prefill.wanted, decode.wanted, reason, numbers, _flip(settings, prefill, decode)), state


def _learn(settings: Settings, o: Observation, state: State) -> State:
    """Lengths of outputs and contexts, from requests that ended and those that run."""
    d = o.decode
    gain = 1 - math.exp(-o.interval_s / _OUTPUT_MEMORY_S)
    output, kv = state.output_tokens, state.kv_per_sequence
    if d.completions > 0 and d.completed_output_tokens > 0:
        mean = d.completed_output_tokens / d.completions
        weight = gain if not math.isnan(output) else 1.0
        output = mean if math.isnan(output) else output + weight * (mean - output)
    if d.running_requests > 0 and d.kv_tokens > 0:
        kv = d.kv_tokens / d.running_requests if math.isnan(kv) else kv + gain * (d.kv_tokens / d.running_requests - kv)
    return replace(state, output_tokens=output, kv_per_sequence=kv)


def _prefill(settings: Settings, o: Observation, state: State) -> tuple[_Plan, PoolState]:
    p, profile, pool = o.prefill, settings.profile, state.prefill
    work = profile.prefill_work_s(p.arrivals, p.prompt_tokens, p.prompt_tokens_squared) / o.interval_s
    mean2 = p.prompt_tokens_squared / p.prompt_tokens if p.prompt_tokens > 0 else 0.0
    queued = 0.0 if math.isnan(p.waiting_tokens) else p.waiting_tokens
    backlog_s = queued * (profile.b_s_per_token + profile.a_s / profile.batch_tokens + profile.c_s_per_token2 * mean2)
    pool = replace(pool, demand=forecast.update(pool.demand, o.now_s, o.interval_s, work, settings.tuning))
    pool = _judge(pool, o, p.pods, pool.demand.level + backlog_s / settings.tuning.window_s, p.ttft_total, p.ttft_ok, 0.0)
    horizon_s = _horizon_s(settings, p.pods, o.interval_s)
    forecasts = forecast.predict(pool.demand, horizon_s, settings.tuning)
    # What one interval can't work off while new work comes in.
    extra = max(0.0, backlog_s - 0.5 * p.pods.ready) / _DRAIN_S
    return _plan(settings, settings.prefill, o, p.pods, pool, forecasts, extra, horizon_s, state.began_s)


def _decode(settings: Settings, o: Observation, state: State) -> tuple[_Plan, PoolState]:
    """Demand is what runs now, and what comes in less what ends until the horizon: with short outputs the arrivals', with long ones the
    running sequences' matter."""
    d, pool, interval_s = o.decode, state.decode, o.interval_s
    kv = 1000.0 if math.isnan(state.kv_per_sequence) else state.kv_per_sequence
    rate = settings.profile.decode_tokens_per_s(0.97 * settings.tpot_s, kv)
    made = d.generated_tokens / interval_s / rate
    output = 200.0 if math.isnan(state.output_tokens) else state.output_tokens
    duration_s = output * (settings.profile.d_s + settings.tpot_s) / 2
    pool = _judge(pool, o, d.pods, made, d.tpot_total, d.tpot_ok, duration_s)
    inflow_now = o.prefill.arrivals * output / interval_s / rate
    pool = replace(pool, demand=forecast.update(pool.demand, o.now_s, interval_s, made, settings.tuning))
    horizon_s = _horizon_s(settings, d.pods, interval_s)
    forecasts = forecast.predict(pool.demand, horizon_s, settings.tuning)
    # Prefilled but not admitted: it wants decode workers, not prefill workers.
    waiting = 0.0 if math.isnan(d.waiting_requests) else d.waiting_requests
    extra = waiting * output / rate / max(_DRAIN_S, duration_s)
    plan, pool = _plan(settings, settings.decode, o, d.pods, pool, forecasts, extra, horizon_s, state.began_s)
    plan.numbers |= {"worker_tokens_per_s": rate, "output_tokens": output, "kv_per_sequence": kv, "inflow": inflow_now}
    return plan, pool


def _horizon_s(settings: Settings, pods: Pods, interval_s: float) -> float:
    cold_s = settings.cold_start_s if math.isnan(pods.cold_start_s) else pods.cold_start_s
    return cold_s + 3 * interval_s


def _judge(pool: PoolState, o: Observation, pods: Pods, demand: float, total: float, ok: float, memory_s: float) -> PoolState:
    """Learn from the interval's misses. A miss of a long request belongs to the utilisation of its whole life."""
    keep = 0.0 if math.isnan(pool.load) else math.exp(-o.interval_s / max(memory_s, 1e-3))
    load = demand + keep * ((pool.load if keep else demand) - demand)
    if math.isnan(total) or math.isnan(ok):
        return replace(pool, load=load)
    fade = math.exp(-o.interval_s / _BUDGET_MEMORY_S)
    curve = capacity.observe(pool.curve, capacity.slack(pods.ready, load), total, ok, o.interval_s)
    missed, counted = pool.missed * fade + total - ok, pool.counted * fade + total
    return replace(pool, load=load, curve=curve, missed=missed, counted=counted)


def _price(settings: Settings, pool: PoolState, arrivals_per_s: float) -> float:
    """Above the budget misses grow dear, below it cheap; twenty minutes that are just in budget are the prior."""
    prior = max(_PRICE_PRIOR_S * arrivals_per_s, 1.0)
    share = (pool.missed + prior * settings.budget) / (pool.counted + prior)
    return settings.price * math.exp(max(-2.0, min(1.5, 2.0 * (share / settings.budget - 1))))


def _miss_share(expected: float, n: int, shares: list[float], ratios: list[tuple[float, float]]) -> float:
    """Expected share of misses with n workers; busy moments hold more requests, so they weigh more."""
    if n <= 0:
        return 1.0
    weight = sum(r * p for r, p in ratios)
    total = 0.0
    for r, p in ratios:
        share = capacity.share_at(shares, capacity.slack(n, expected * r))
        total += r * p * share * (1 + _TOGETHER * share)
    return total / weight


def _plan(
    settings: Settings,
    limits: PoolLimits,
    o: Observation,
    pods: Pods,
    pool: PoolState,
    forecasts: tuple[float, ...],
    extra: float,
    horizon_s: float,
    began_s: float,
) -> tuple[_Plan, PoolState]:
    if o.now_s - began_s >= _LEARN_S:
        pool = replace(pool, demand=forecast.remember(pool.demand, o.now_s + horizon_s, forecasts))
    expected = forecasts[0]
    wanted_load = expected * settings.over_provisioning + extra
    price = _price(settings, pool, o.prefill.arrivals / o.interval_s)
    plan = _Plan(pods, limits, pods.replicas, "", max(wanted_load, 1e-6), price, pool.curve.shares(), forecast.ratios(pool.demand))
    most = max(1, limits.most)  # whatever is measured, the search ends at the bounds
    lowest, highest = (min(most, max(1, int(n))) for n in (0.5 * wanted_load, 3 * wanted_load + 4))
    best = min(range(lowest, highest + 1), key=plan.loss)
    best = max(best, _scheduled(settings, limits is settings.prefill, o.now_s))
    best = max(limits.least, min(limits.most, best))
    keep_s = _KEEP * (horizon_s - 3 * o.interval_s)
    history = (*[(at, n) for at, n in pool.wanted if at > o.now_s - keep_s], (o.now_s, best))
    highest_lately = max(n for _, n in history)
    if best > pods.replicas:
        plan.wanted, plan.reason = best, f"{wanted_load:.2f} workers of work expected in {horizon_s:.0f} s"
    elif highest_lately < pods.replicas:
        plan.wanted, plan.reason = highest_lately, f"{keep_s:.0f} s without need of more than {highest_lately}"
    else:
        plan.wanted, plan.reason = max(limits.least, min(limits.most, pods.replicas)), "enough"
    plan.numbers = {
        "demand": pool.demand.level, "forecast": expected, "backlog": extra, "horizon_s": horizon_s,
        "utilisation": pool.load / max(pods.ready, 1),
        "best": float(best), "expected_misses": _miss_share(plan.forecast, plan.wanted, plan.shares, plan.ratios), "price": price,
        "missed_share": pool.missed / pool.counted if pool.counted else math.nan,
    }  # fmt: skip
    return plan, replace(pool, wanted=history)


def _scheduled(settings: Settings, prefill: bool, now_s: float) -> int:
    at = now_s % forecast.DAY_S
    active = [p for p in settings.peaks if (p.from_s <= at < p.to_s if p.from_s <= p.to_s else at >= p.from_s or at < p.to_s)]
    return max([p.prefill if prefill else p.decode for p in active], default=0)


def _join(settings: Settings, prefill: _Plan, decode: _Plan) -> None:
    """Ratio, then the GPU budget: what has to go is taken where it hurts least."""
    if settings.ratio is not None:
        low, high = settings.ratio
        if decode.wanted < low * prefill.wanted:
            decode.wanted, decode.reason = min(decode.limits.most, math.ceil(low * prefill.wanted)), f"at least {low:g} per prefill worker"
        elif decode.wanted > high * prefill.wanted:
            prefill.wanted = min(prefill.limits.most, math.ceil(decode.wanted / high))
            prefill.reason = f"at most {high:g} decode workers each"
    if settings.gpu_budget is None:
        return
    while prefill.wanted * prefill.limits.gpus + decode.wanted * decode.limits.gpus > settings.gpu_budget:
        able = [p for p in (prefill, decode) if p.wanted > p.limits.least]
        if not able:
            return
        least = min(able, key=lambda p: (p.loss(p.wanted - 1) - p.loss(p.wanted)) / p.limits.gpus)
        least.wanted -= 1
        least.reason = f"the budget of {settings.gpu_budget} GPUs"


def _flip(settings: Settings, prefill: _Plan, decode: _Plan) -> int:
    """Workers that one pool gives and the other takes, where moving them is faster than starting new ones."""
    if settings.role_flip_s is None:
        return 0
    more_decode, more_prefill = decode.wanted - decode.pods.replicas, prefill.wanted - prefill.pods.replicas
    cold_s = settings.cold_start_s if math.isnan(decode.pods.cold_start_s) else decode.pods.cold_start_s
    if settings.role_flip_s >= cold_s:
        return 0
    return max(0, min(more_decode, -more_prefill)) - max(0, min(more_prefill, -more_decode))


def _blind(settings: Settings, o: Observation, state: State) -> Targets:
    """Hold; after a while rise to the upper end of what this time of day has seen. Never down."""
    reason = "no metrics: holding"
    sizes = []
    for pods, limits, pool in ((o.prefill.pods, settings.prefill, state.prefill), (o.decode.pods, settings.decode, state.decode)):
        n = pods.replicas
        if not math.isnan(state.seen_s) and o.now_s - state.seen_s > _BLIND_FORECAST_S:
            usual, then = forecast.seasonal(pool.demand, o.now_s + settings.cold_start_s), forecast.seasonal(pool.demand, state.seen_s)
            if then > 0 and usual > then and pool.demand.level > 0:
                n = max(n, math.ceil(n * min(usual / then, 2.0)))
                reason = "no metrics for 5 minutes: at least what this time of day usually needs"
        sizes.append(max(limits.least, min(limits.most, n)))
    return Targets(sizes[0], sizes[1], reason)
