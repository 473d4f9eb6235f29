"""PURE: The number of workers for the expected work: of each pool alone, and of both together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy import forecast, miss_curve
from disagg_operator.autoscaling.policy.memory import PoolLimits, PoolState, Settings
from disagg_operator.autoscaling.policy.observation import Observation, Pods

# A miss among many misses weighs up to this many times more: one miss in a hundred hardly matters,
# but a bad minute is an incident.
_TOGETHER = 25.0
_PRICE_PRIOR_S = 1200.0
_PRICE_HIGH, _PRICE_GAIN = 1.5, 2.0
_KEEP = 1.5  # cold starts
_NODE_S = 600.0  # nodes are asked for, and workers kept, by the work expected this much later
_PATIENCE_S = 600.0  # a worker that is starting for longer than this ...
_PATIENCE = 4.0  # ... and for longer than this many cold starts cannot be placed
_LEARN_S = 180.0  # earlier forecasts do not count against the forecaster
_NODE_QUANTILE = 0.95


@dataclass(slots=True)
class PoolSizing:
    """The result of one step for one pool, while it is being computed."""

    pods: Pods
    """The workers of the pool."""
    limits: PoolLimits
    """The bounds of the pool."""
    wanted: int
    """The number of workers that the pool should have."""
    reason: str
    """The reason for that number, in a few words."""
    forecast: float = 1e-6
    """The expected work, in workers."""
    price: float = 0.0
    """The cost of missed requests that amount to the work of one worker, in workers."""
    shares: list[float] = field(default_factory=list)
    """The share of requests that miss their objective, by slack; see `miss_curve`."""
    ratios: list[tuple[float, float]] = field(default_factory=list)
    """(actual / forecast, probability); empty if nothing is known."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The numbers that the decision is based on, by name."""
    ahead: int = 0
    """Workers that may be needed in ten minutes."""
    need: int = 0
    """Workers of least loss now, without those kept as a reserve against another rise."""
    known: dict[int, float] = field(default_factory=dict)
    """The losses computed so far, by number of workers."""

    def misses(self, n: int) -> float:
        """Return the expected share of requests that miss with n workers, or 0 if it is unknown."""
        return miss_share(self.forecast, n, self.shares, self.ratios, 0.0) if self.ratios else 0.0

    def loss(self, n: int) -> float:
        """Return the cost of n workers including the misses, in workers."""
        if n not in self.known:
            self.known[n] = n + (
                self.price * self.forecast * miss_share(self.forecast, n, self.shares, self.ratios)
                if self.ratios
                else 0.0
            )
        return self.known[n]

    def best(self) -> int:
        """Return the number of workers of least loss, within the largest size of the pool.

        Fewer workers than the forecast work needs are never considered, since their queue grows
        without end.
        """
        most = max(1, self.limits.most)  # the bound of the search, whatever is measured
        low, high = (
            min(most, max(1, int(min(n, 1e6)))) for n in (math.ceil(min(1e6, self.forecast)), 3 * self.forecast + 4)
        )
        return min(range(low, high + 1), key=self.loss)


def hold(pods: Pods, limits: PoolLimits, reason: str) -> PoolSizing:
    """Return a sizing that keeps the pool's size, for a step in which its work is unknown."""
    n = max(limits.least, min(limits.most, pods.replicas))
    return PoolSizing(pods, limits, n, reason, ahead=n, need=n)


def miss_share(
    expected: float, n: int, shares: list[float], ratios: list[tuple[float, float]], together: float | None = None
) -> float:
    """Return the expected share of misses with n workers.

    Busy moments hold more requests and therefore weigh more.
    """
    if n <= 0:
        return 1.0
    weight = sum(r * p for r, p in ratios)
    total = 0.0
    more = _TOGETHER if together is None else together
    for r, p in ratios:
        share = miss_curve.share_at(shares, miss_curve.slack(n, expected * r))
        total += r * p * share * (1 + more * share)
    return total / weight


def price_of(settings: Settings, pool: PoolState, arrivals_per_s: float) -> float:
    """Return the price of misses, in workers for one worker's work of missed requests.

    It rises while the share of misses is above the budget and falls while it is below. The prior is
    twenty minutes in which the share equals the budget.
    """
    prior = max(_PRICE_PRIOR_S * arrivals_per_s, 1.0)
    share = (pool.missed + prior * settings.budget) / (pool.counted + prior)
    return settings.price * math.exp(pool.pressure + min(_PRICE_HIGH, _PRICE_GAIN * (share / settings.budget - 1)))


@dataclass(frozen=True, slots=True)
class Outlook:
    """The expectations for a pool."""

    horizon_s: float
    """Seconds ahead for which work is forecast: a cold start and three scrapes."""
    arrivals_per_s: float
    """Requests that arrive per second."""
    extra: float = 0.0
    """Workers that work off the backlog."""
    began_s: float = 0.0
    """The time of the policy's first step."""


def plan(
    settings: Settings, role: str, o: Observation, pool: PoolState, outlook: Outlook
) -> tuple[PoolSizing, PoolState]:
    """Return the number of workers that this pool wants on its own, and its new state."""
    tuning, horizon_s = settings.tuning, outlook.horizon_s
    limits, pods = settings.limits(role), o.pods(role)
    forecasts = forecast.predict(pool.demand, horizon_s, tuning)
    if o.now_s - outlook.began_s >= _LEARN_S:
        pool = replace(pool, demand=forecast.remember(pool.demand, o.now_s + horizon_s, forecasts))
    load = max(forecasts[0] * settings.over_provisioning + outlook.extra, 1e-6)
    price, shares, ratios = (
        price_of(settings, pool, outlook.arrivals_per_s),
        pool.curve.shares(),
        forecast.ratios(pool.demand),
    )
    found = PoolSizing(pods, limits, pods.replicas, "", load, price, shares, ratios)
    later = max(forecast.predict(pool.demand, _NODE_S, tuning)[0] * settings.over_provisioning, 1e-6)
    later_plan = PoolSizing(pods, limits, 0, "", later, price, shares, ratios)
    pool = _placeable(pool, pods, o.now_s, horizon_s)
    most = min(limits.most, pool.cap) if o.now_s < pool.cap_until_s else limits.most

    def bounded(n: int) -> int:
        return max(limits.least, min(most, n))

    cheapest, scheduled = found.best(), _scheduled(settings, role, o.now_s, horizon_s)
    found.need = best = bounded(max(cheapest, scheduled))
    at_node = bounded(later_plan.best())
    found.ahead = max(best, at_node, bounded(math.ceil(min(1e6, later * _quantile(ratios, _NODE_QUANTILE)))))
    keep_s = _KEEP * (horizon_s - 3 * o.interval_s)
    history = (*[(at, n) for at, n in pool.wanted if at > o.now_s - keep_s], (o.now_s, best))
    lately = max(max(n for _, n in history), at_node)
    if best > pods.replicas and scheduled > cheapest:
        found.wanted, found.reason = best, f"the schedule asks for {scheduled}"
    elif best > pods.replicas:
        found.wanted = best
        found.reason = f"{load:.2f} workers of work expected in {horizon_s:.0f} s; {_why(found, best)}"
    elif min(lately, most) < pods.replicas:
        found.wanted, found.reason = bounded(lately), f"{keep_s:.0f} s without need of more than {lately}"
    else:
        found.wanted, found.reason = bounded(pods.replicas), "enough"
    if most < limits.most and found.wanted == most:
        found.reason = f"more than {most} can't be placed"
    found.numbers = {
        "demand": pool.demand.level, "forecast": forecasts[0], "backlog": outlook.extra, "horizon_s": horizon_s,
        "utilisation": pool.load / max(pods.ready, 1), "best": float(best), "in_ten_minutes": float(found.ahead),
        "expected_misses": found.misses(found.wanted), "price": price,
        "missed_share": pool.missed / pool.counted if pool.counted else math.nan,
    }  # fmt: skip
    return found, replace(pool, wanted=history)


def _why(found: PoolSizing, n: int) -> str:
    """Return the expected misses with n workers and with one fewer, in words."""
    return f"{found.misses(n):.2%} would miss with {n}, {found.misses(n - 1):.2%} with {n - 1}"


def _placeable(pool: PoolState, pods: Pods, now_s: float, horizon_s: float) -> PoolState:
    """Return the state with a cap on the pool's size if some workers cannot be placed.

    Workers that are starting count as capacity, but not for ever: those that cannot be placed are
    given up, and tried again later.
    """
    stuck = sum(age > max(_PATIENCE_S, _PATIENCE * horizon_s) for age in pods.starting_ages_s)
    if not stuck:
        return pool
    return replace(pool, cap=max(0, pods.replicas - stuck), cap_until_s=now_s + _PATIENCE_S)


def _quantile(ratios: list[tuple[float, float]], q: float) -> float:
    total = 0.0
    for ratio, share in ratios:
        total += share
        if total >= q:
            return ratio
    return ratios[-1][0]


def _scheduled(settings: Settings, role: str, now_s: float, horizon_s: float) -> int:
    """Return the workers that the schedule asks for until new ones would be ready.

    These are the workers of all peaks that are active at some time from now until then.
    """
    return max([p.workers(role) for p in settings.peaks if p.is_near(now_s, horizon_s)], default=0)


def join(settings: Settings, prefill: PoolSizing, decode: PoolSizing) -> None:
    """Apply the ratio and the GPU budget.

    If the sizes that the pools want do not fit, both pools get the pair of sizes that fits at the
    least loss.
    """
    budget = math.inf if settings.gpu_budget is None else settings.gpu_budget
    low, high = settings.ratio if settings.ratio is not None else (0.0, math.inf)

    def fits(p: int, d: int) -> bool:
        return p * prefill.limits.gpus + d * decode.limits.gpus <= budget and low * p <= d <= high * p

    if fits(prefill.wanted, decode.wanted):
        return
    best: tuple[float, int, int] | None = None
    for p in range(prefill.limits.least, prefill.limits.most + 1):
        room = min(decode.limits.most, high * p, (budget - p * prefill.limits.gpus) / max(decode.limits.gpus, 1e-9))
        least = max(decode.limits.least, math.ceil(low * p - 1e-9))
        d = max(least, min(decode.wanted, math.floor(room + 1e-9)))
        if d > decode.limits.most or not fits(p, d):
            continue
        loss = prefill.limits.gpus * _apart(prefill, p) + decode.limits.gpus * _apart(decode, d)
        if best is None or loss < best[0]:
            best = loss, p, d
    why = "the budget of " + f"{settings.gpu_budget} GPUs" if low == 0 and math.isinf(high) else "ratio and GPU budget"
    if best is None:
        _set(prefill, prefill.limits.least, why + " leave no choice")
        _set(decode, decode.limits.least, why + " leave no choice")
        return
    _set(prefill, best[1], why)
    _set(decode, best[2], why)


def _apart(plan: PoolSizing, n: int) -> float:
    """Return the loss of n workers.

    Workers beyond the wanted number cost themselves. So do those that are taken from a pool that is
    held because its work is unknown.
    """
    return plan.loss(n) if n <= plan.wanted and plan.ratios else abs(n - plan.wanted) + plan.loss(plan.wanted)


def _set(plan: PoolSizing, n: int, reason: str) -> None:
    if n != plan.wanted:
        plan.wanted, plan.reason = n, reason
