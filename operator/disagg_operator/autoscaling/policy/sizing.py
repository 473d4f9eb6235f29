"""PURE: The number of workers for the expected work: of each pool alone, and of both together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy import decision, forecast, miss_curve
from disagg_operator.autoscaling.policy.forecast import MOST, SPELL_S, TINY
from disagg_operator.autoscaling.policy.memory import PoolLimits, PoolState, Settings
from disagg_operator.autoscaling.policy.observation import Observation, Pods

_PRICE_PRIOR_S = 2 * SPELL_S
_PRICE_HIGH, _PRICE_GAIN = 1.5, 2.0
_KEEP = 1.5  # cold starts
_NODE_S = SPELL_S  # nodes are asked for, and workers kept, by the work expected this much later
_AT_ONCE = 10  # workers; so many more, or twice as many, find out whether there is room
_PATIENCE_S = SPELL_S  # a worker that starts for longer than this ...
_PATIENCE = 2.0  # ... and for longer than this many cold starts is none
_LEARN_S = 180.0  # earlier forecasts do not count against the forecaster
_HIGH = 0.95  # of the errors of forecasts: what nodes are asked for, and the spread that is shown


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
    forecast: float = TINY
    """The expected work and its head-room, in workers."""
    backlog: float = 0.0
    """Workers that work off what waits in the time for which a worker is started."""
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
    lost: int = 0
    """Workers that the pool is set to, but that cannot be placed or started."""
    limit: str = ""
    """The limit of both pools that has changed the number, as a word of `decision`."""
    headroom: float = 1.0
    """The multiple of the expected work that `forecast` is."""
    flips: bool = False
    """Whether a worker of the other pool comes sooner than one that is started."""
    known: dict[int, float] = field(default_factory=dict)
    """The losses computed so far, by number of workers."""

    def misses(self, n: int) -> float:
        """Return the expected share of requests that miss with n workers, or 0 if it is unknown."""
        if not self.ratios:
            return 0.0
        return min(1.0, miss_share(self.forecast, n, self.shares, self.ratios) + self._late(n))

    def loss(self, n: int) -> float:
        """Return the cost of n workers including the misses, in workers.

        Work that n workers cannot do makes others wait as well, and therefore counts twice. Hence
        each worker brings something as long as there are too few of them, however few they are.
        """
        if n not in self.known:
            late = self.price * self.forecast * self._late(n) if self.ratios else 0.0
            self.known[n] = self._loss(self.forecast, n, self.price) + late
        return self.known[n]

    def _late(self, n: int) -> float:
        """Return for how long requests are late because of the backlog, by a worker's time.

        It is worked off by the workers that the lasting work leaves.
        """
        return self.backlog / max(n - self.forecast, TINY)

    @property
    def work(self) -> float:
        """The expected work without head-room, in workers."""
        return self.forecast / self.headroom

    def share_loss(self, n: int, price: float, work: float) -> float:
        """Return the cost of n workers for this work if the pools cannot have as many as they want.

        The price is the same for both pools: that one of them has missed more is no reason to let
        the other one starve. A backlog does not count, since what the pools share is to serve the
        work that lasts. A worker that is to be started helps only after its cold start, and stays
        for `_KEEP` of them; one that changes its role helps at once.
        """
        if not self.ratios:
            return abs(n - self.wanted) + self.wanted
        if n > self.wanted:
            return n - self.wanted + self.share_loss(self.wanted, price, work)
        loss, now = self._loss(work, n, price), max(1, self.pods.replicas - self.lost)
        return loss if n <= now or self.flips else loss + (self._loss(work, now, price) - loss) / _KEEP

    def gives(self, n: int) -> int:
        """Return how many of the workers that it has and wants the pool gives away."""
        return max(0, min(self.wanted, self.pods.replicas - self.lost) - n)

    def _loss(self, work: float, n: float, price: float) -> float:
        if not self.ratios:
            return n
        missed = miss_share(work, n, self.shares, self.ratios) + undone_share(work, n, self.ratios)
        return n + price * work * missed

    def best(self) -> int:
        """Return the number of workers of least loss, within the largest size of the pool.

        Fewer workers than the forecast work needs are never considered, since their queue grows
        without end.
        """
        most = max(1, self.limits.most)
        best = max(1, math.ceil(min(self.forecast, most)))
        for n in range(best + 1, most + 1):
            if n >= self.loss(best):
                break  # more workers cost more than all misses of the best number
            if self.loss(n) < self.loss(best):
                best = n
        return best


def hold(pods: Pods, limits: PoolLimits, reason: str) -> PoolSizing:
    """Return a sizing that keeps the pool's size, for a step in which its work is unknown."""
    n = max(limits.least, min(limits.most, pods.replicas))
    return PoolSizing(pods, limits, n, reason, ahead=n, need=n)


def miss_share(expected: float, n: float, shares: list[float], ratios: list[tuple[float, float]]) -> float:
    """Return the expected share of misses with n workers.

    Busy moments hold more requests and therefore weigh more.
    """
    if n <= 0:
        return 1.0
    missed = sum(r * p * miss_curve.share_at(shares, miss_curve.slack(n, expected * r)) for r, p in ratios)
    return missed / sum(r * p for r, p in ratios)


def undone_share(expected: float, n: float, ratios: list[tuple[float, float]]) -> float:
    """Return the expected share of the work that n workers cannot do in time."""
    undone = sum(p * max(0.0, r - max(0.0, n) / expected) for r, p in ratios)
    return undone / sum(r * p for r, p in ratios)


def price_of(settings: Settings, pool: PoolState, arrivals_per_s: float) -> float:
    """Return the price of misses, in workers for one worker's work of missed requests.

    It rises while the share of misses is above the budget and falls while it is below. The prior is
    twenty minutes in which the share equals the budget.
    """
    prior = max(_PRICE_PRIOR_S * arrivals_per_s, 1.0)
    share = (pool.missed + prior * settings.budget) / (pool.counted + prior)
    return settings.price * math.exp(min(_PRICE_HIGH, _PRICE_GAIN * (share / settings.budget - 1)))


@dataclass(frozen=True, slots=True)
class Outlook:
    """The expectations for a pool."""

    cold_s: float
    """Seconds until a worker that is asked for now is ready."""
    seen_s: float
    """Seconds until a rise is seen. Work is forecast for a cold start and this time."""
    arrivals_per_s: float
    """Requests that arrive per second."""
    backlog: float = 0.0
    """Seconds of one worker's work that wait now."""
    began_s: float = 0.0
    """The time of the policy's first step."""
    full: bool = False
    """Whether workers lacked a node a short while ago."""
    coming: float = 0.0
    """The least work that is expected, in workers, because it has reached the pool before."""
    shown: float = 0.0
    """The least work that the last intervals show, in workers."""


def plan(
    settings: Settings, role: str, o: Observation, pool: PoolState, outlook: Outlook
) -> tuple[PoolSizing, PoolState]:
    """Return the number of workers that this pool wants on its own, and its new state."""
    tuning, cold_s = settings.tuning, outlook.cold_s
    horizon_s = cold_s + outlook.seen_s
    limits, pods = settings.limits(role), o.pods(role)
    combined, *each = forecast.predict(pool.demand, horizon_s, tuning)
    expected = max(combined, outlook.coming, outlook.shown)
    if o.now_s - outlook.began_s >= _LEARN_S:
        pool = replace(pool, demand=forecast.remember(pool.demand, o.now_s + horizon_s, (expected, *each)))
    lasting = max(expected * settings.over_provisioning, TINY)
    helps_s = cold_s if settings.role_flip_s is None else min(cold_s, settings.role_flip_s)
    backlog = queue(pods, lasting, outlook.backlog, helps_s)
    keep_s = _KEEP * cold_s
    price, shares = price_of(settings, pool, outlook.arrivals_per_s), pool.curve.shares()
    ratios, waits = forecast.ratios(pool.demand), backlog / (horizon_s + keep_s)
    found = PoolSizing(pods, limits, pods.replicas, "", lasting, waits, price, shares, ratios)
    in_node_s = max(forecast.predict(pool.demand, _NODE_S, tuning)[0], outlook.coming)
    later = max(in_node_s * settings.over_provisioning, TINY)
    later_plan = PoolSizing(pods, limits, 0, "", later, 0.0, price, shares, ratios)
    found.lost, found.headroom, found.flips = _lost(pods, horizon_s), settings.over_provisioning, helps_s < cold_s

    def bounded(n: int) -> int:
        return max(limits.least, min(limits.most, n))

    cheapest, scheduled = found.best(), _scheduled(settings, role, o.now_s, horizon_s)
    found.need = best = bounded(max(cheapest, scheduled))
    at_node = bounded(later_plan.best())
    found.ahead = max(best, at_node, bounded(math.ceil(min(MOST, later * _quantile(ratios, _HIGH)))))
    # What is given up in a full cluster may not come back.
    keep_s = max(keep_s, _PATIENCE_S) if outlook.full else keep_s
    history = (*[(at, n) for at, n in pool.wanted if at > o.now_s - max(keep_s, _PATIENCE_S)], (o.now_s, best))
    lately = max(best, at_node, *(n for at, n in history if at > o.now_s - keep_s))
    asked = bounded(_at_once(pods, best, pool.wanted[-1][1] if pool.wanted else best))
    if best > pods.replicas and scheduled > cheapest:
        found.wanted, found.reason = best, f"the schedule asks for {scheduled}"
    elif asked > pods.replicas:
        found.wanted = asked
        queued = f", and {backlog:.0f} s of one worker's work that waits" if backlog else ""
        found.reason = f"{lasting:.2f} workers of work expected in {horizon_s:.0f} s{queued}; {_why(found, best)}"
    elif min(lately, limits.most) < pods.replicas:
        found.wanted, found.reason = bounded(lately), f"{keep_s:.0f} s without need of more than {lately}"
    else:
        found.wanted, found.reason = bounded(pods.replicas), "enough"
        if best < pods.replicas:
            why = f"are needed in {_NODE_S:.0f} s" if at_node == lately else f"were needed in the last {keep_s:.0f} s"
            found.reason = f"{best} would do now, but {lately} {why}"
    found.numbers = {
        "demand": pool.demand.level, "forecast": expected, "backlog": backlog, "horizon_s": horizon_s,
        "utilisation": pool.load / max(pods.ready, 1), "best": float(best), "in_ten_minutes": float(found.ahead),
        "expected_misses": found.misses(found.wanted), "price": price,
        "missed_share": pool.missed / pool.counted if pool.counted else math.nan,
        "error_low": _quantile(ratios, 1 - _HIGH) if ratios else math.nan,
        "error_high": _quantile(ratios, _HIGH) if ratios else math.nan,
    }  # fmt: skip
    return found, replace(pool, wanted=history)


def _at_once(pods: Pods, best: int, before: int) -> int:
    """Return how many workers to ask for if `best` are needed now and `before` at the last step.

    The first of many workers find out whether the cluster has room. The others are asked for when
    those have been placed, also if they alone would do by then.
    """
    if not pods.starting_ages_s:
        return min(best, pods.replicas + max(pods.replicas, _AT_ONCE))
    return best if pods.unplaced_s else max(best, before)


def queue(pods: Pods, work: float, backlog: float, helps_s: float) -> float:
    """Return the backlog that is to be worked off.

    This is the one of now, or that of the time when a worker that is asked for now can help, if
    that is more. Until then it grows by the work for which there are no workers.
    """
    n, now_s, now = pods.ready, 0.0, backlog
    due = sorted(max(0.0, helps_s - age) for age in pods.starting_ages_s)
    for at_s in (*due, helps_s):
        backlog = max(0.0, backlog + (work - n) * (at_s - now_s))
        n, now_s = n + 1, at_s
    return max(now, backlog)


def _why(found: PoolSizing, n: int) -> str:
    """Return the expected misses with n workers and with one fewer, in words."""
    return f"{found.misses(n):.2%} would miss with {n}, {found.misses(n - 1):.2%} with {n - 1}"


def _lost(pods: Pods, horizon_s: float) -> int:
    """Return how many of the starting workers are no capacity.

    These have no node, or have been starting for far too long.
    """
    slow = sum(age > max(_PATIENCE_S, _PATIENCE * horizon_s) for age in pods.starting_ages_s)
    return min(pods.replicas, max(len(pods.unplaced_s), slow))


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


def join(settings: Settings, prefill: PoolSizing, decode: PoolSizing, *, full: bool = False) -> None:
    """Apply the ratio, the GPU budget and the room that the cluster has.

    If the sizes that the pools want do not fit, both pools get the pair of sizes that fits at the
    least loss. `full` says that workers lacked a node a short while ago.
    """
    why = f"the budget of {settings.gpu_budget} GPUs" if settings.ratio is None else "ratio and GPU budget"
    asked, pools = (prefill.wanted, decode.wanted), (prefill, decode)
    for pool in pools:
        pool.numbers["asked"] = float(pool.wanted)
    budget = math.inf if settings.gpu_budget is None else settings.gpu_budget
    _share(settings, prefill, decode, budget, why, decision.GPU_BUDGET)
    if prefill.lost or decode.lost:
        # Workers without a node are no capacity, so the pools share the others.
        room = sum(pool.limits.gpus * (pool.pods.replicas - pool.lost) for pool in pools)
        _share(settings, prefill, decode, room, f"the cluster has room for {room} GPUs", decision.CLUSTER_CAPACITY)
        for pool, wish in zip(pools, asked, strict=True):
            _hold_lost(pool, wish)
    elif full:
        # Nobody waits for a node any more. A worker of each pool finds out whether there is one.
        for pool in pools:
            n = min(pool.wanted, max(pool.limits.least, pool.pods.replicas + 1))
            _set(pool, n, "one worker finds out whether there is room", decision.CLUSTER_CAPACITY)


def _hold_lost(pool: PoolSizing, wish: int) -> None:
    """Keep asking for the workers that could not be placed, unless others must go first.

    They take the room that the other pool leaves and that a node brings, and are not asked for
    again and again.
    """
    n = min(pool.pods.replicas, wish)
    if pool.lost and pool.pods.replicas - pool.lost <= pool.wanted < n:
        pool.wanted = n
    if pool.lost and pool.wanted == pool.pods.replicas:
        pool.reason = f"{pool.lost} of {pool.pods.replicas} can't be placed, and are held until there is room"
        pool.limit = decision.CLUSTER_CAPACITY


def shortage(pool: PoolSizing) -> str:
    """Return why the pool's objective cannot be met for long, or nothing if it can."""
    if not pool.ratios or pool.work <= max(pool.wanted - pool.lost, 0):
        return ""
    n = pool.wanted - pool.lost
    limit = f"at most {n} workers are allowed" if n >= pool.limits.most else pool.reason
    return f"{pool.work:.1f} workers of work are expected, and {n} do {n / pool.work:.0%} of it: {limit}"


def limit_of(pool: PoolSizing) -> str:
    """Return the limit at which a pool stands, as a word of `decision`, or nothing."""
    return pool.limit or decision.at_bound(pool.wanted, pool.limits.least, pool.limits.most)


def _share(settings: Settings, prefill: PoolSizing, decode: PoolSizing, budget: float, why: str, limit: str) -> None:
    low, high = settings.ratio if settings.ratio is not None else (0.0, math.inf)

    def fits(p: int, d: int) -> bool:
        return p * prefill.limits.gpus + d * decode.limits.gpus <= budget and low * p <= d <= high * p

    if fits(prefill.wanted, decode.wanted):
        return
    if prefill.wanted * prefill.limits.gpus + decode.wanted * decode.limits.gpus <= budget:
        limit = decision.RATIO
    # Head-room is for pools of which none lacks workers for its work. Then too, a pool gives a
    # running worker only to one that has too few: otherwise they would pass one to and fro with
    # every breath of the load.
    pools = prefill, decode
    works = [pool.work for pool in pools]
    if all(pool.pods.replicas - pool.lost >= pool.work for pool in pools):
        works = [pool.forecast for pool in pools]
    short = any(pool.pods.replicas - pool.lost < work for pool, work in zip(pools, works, strict=True))
    best: tuple[float, int, int] | None = None
    for p in range(prefill.limits.least, prefill.limits.most + 1):
        room = min(decode.limits.most, high * p, (budget - p * prefill.limits.gpus) / max(decode.limits.gpus, TINY))
        least = max(decode.limits.least, math.ceil(low * p - TINY))
        d = max(least, min(decode.wanted, math.floor(room + TINY)))
        if d > decode.limits.most or not fits(p, d):
            continue
        pairs = (prefill, p, works[0]), (decode, d, works[1])
        loss = sum(pool.limits.gpus * pool.share_loss(n, settings.price, work) for pool, n, work in pairs)
        loss += 0.0 if short else settings.price * sum(pool.gives(n) for pool, n, _ in pairs)
        if best is None or loss < best[0]:
            best = loss, p, d
    if best is None:
        _set(prefill, prefill.limits.least, why + " leave no choice", limit)
        _set(decode, decode.limits.least, why + " leave no choice", limit)
        return
    _set(prefill, best[1], why, limit)
    _set(decode, best[2], why, limit)


def _set(plan: PoolSizing, n: int, reason: str, limit: str) -> None:
    if n != plan.wanted:
        plan.wanted, plan.reason, plan.limit = n, reason, limit
