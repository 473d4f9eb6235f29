"""PURE: Forecasts of a rate one horizon from now, and the errors of earlier forecasts.

Several forecasters of the same form run side by side: level and damped trend by Holt's method (E.
S. Gardner, "Exponential smoothing: the state of the art", 1985, with time constants instead of
factors per step, so that the interval may vary), adjusted by the daily shape once two days of it
are known. They differ in how fast they follow the rate. Each is weighted by how little it has erred
on this very rate: work that arrives in bursts is best forecast by its long mean, a ramp by the fast
forecaster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

DAY_S = 86_400.0
# Nodes start, estimators settle and the daily load changes within this time.
SPELL_S = 600.0
SHAPE_BINS = round(DAY_S / SPELL_S)
ERROR_STEP = 0.05
ERROR_BINS = 25  # log(actual / forecast) from -0.6 to 0.6; larger errors cannot be paid for
_MIDDLE = ERROR_BINS // 2
_PRIOR_SPREAD, _PRIOR_FORECASTS = 0.2, 2.0
TINY = 1e-6  # guards divisions; smaller shares and amounts of work are none
MOST = 1e9  # requests, tokens or workers; a larger value is not a valid measurement


@dataclass(frozen=True, slots=True)
class Tuning:
    """The time constants of the forecasters."""

    level_s: tuple[float, ...] = (45.0, 150.0, 500.0)
    """Seconds over which the level is smoothed, for each forecaster."""
    trend_s: tuple[float, ...] = (240.0, 400.0, 1200.0)
    """Seconds over which the trend is smoothed, for each forecaster."""
    damping_s: float = 150.0
    """Seconds for which a trend is expected to last."""
    error_memory_s: float = 800.0
    """Seconds after which errors fade.

    Large errors come in clusters, and what is remembered for longer is paid for longer.
    """
    skill_memory_s: float = 3600.0
    """Seconds over which the errors of each forecaster are averaged."""
    skill_power: float = 4.0
    """The weight of a forecaster is its mean square error to the power of minus this."""
    window_s: float = 60.0
    """Seconds over which the actual rate is averaged to judge a forecast."""
    shape_days: float = 3.0
    """Days over which the daily shape is averaged."""


@dataclass(frozen=True, slots=True)
class Forecaster:
    """The state of the forecasts of one rate."""

    levels: tuple[float, ...] = ()
    """The level of each forecaster."""
    trends: tuple[float, ...] = ()
    """The trend of each forecaster, per second."""
    updated_s: float = math.nan
    """The time of the last update; NaN before the first one."""
    fresh_s: float = 0.0
    """Seconds for which the levels have been followed."""
    recent: tuple[tuple[float, float], ...] = ()
    """(time, rate) of the last window."""
    made: tuple[tuple[float, ...], ...] = ()
    """(due time, combined forecast, forecast of each forecaster), not judged yet."""
    errors: tuple[float, ...] = ()
    """Histogram of log(actual / forecast)."""
    skill: tuple[float, ...] = ()
    """Faded mean square of log(actual / forecast) of each forecaster."""
    shape: tuple[float, ...] = ()
    """Mean rate of each ten minutes of a day."""
    shape_seen_s: float = 0.0
    """Seconds of observation in the daily shape."""

    @property
    def level(self) -> float:
        """Mean rate of the last window; NaN before the first update."""
        return sum(rate for _, rate in self.recent) / len(self.recent) if self.recent else math.nan


def update(f: Forecaster, now_s: float, interval_s: float, rate: float, tuning: Tuning) -> Forecaster:
    """Process the rate of the interval that ends at `now_s`."""
    shape, seen_s = _shape(f, now_s, interval_s, rate, tuning), f.shape_seen_s + interval_s
    if not f.levels:
        n = len(tuning.level_s)
        return replace(
            f, levels=(rate,) * n, trends=(0.0,) * n, updated_s=now_s, fresh_s=interval_s, recent=((now_s, rate),),
            shape=shape, shape_seen_s=seen_s,
            errors=f.errors or prior(), skill=f.skill or (_PRIOR_SPREAD**2,) * n,
        )  # fmt: skip
    dt = max(now_s - f.updated_s, TINY)
    levels, trends = [], []
    for level, trend, level_s, trend_s in zip(f.levels, f.trends, tuning.level_s, tuning.trend_s, strict=True):
        expected = level + trend * dt
        # At first a plain mean, so that the first interval weighs no more than the others.
        young = f.fresh_s < level_s
        gain = max(1 - math.exp(-dt / level_s), dt / (f.fresh_s + dt)) if young else 1 - math.exp(-dt / level_s)
        levels.append(max(0.0, expected + gain * (rate - expected)))
        trends.append(0.0 if young else trend + (1 - math.exp(-dt / trend_s)) * ((levels[-1] - level) / dt - trend))
    recent = (*[(at, r) for at, r in f.recent if at > now_s - tuning.window_s + interval_s / 2], (now_s, rate))
    f = replace(
        f,
        levels=tuple(levels),
        trends=tuple(trends),
        updated_s=now_s,
        fresh_s=f.fresh_s + dt,
        recent=recent,
        shape=shape,
        shape_seen_s=seen_s,
    )
    return _judge(f, now_s, dt, tuning)


def _judge(f: Forecaster, now_s: float, dt: float, tuning: Tuning) -> Forecaster:
    """Compare the forecasts that are due with the mean rate over the window around their time."""
    due = [made for made in f.made if made[0] <= now_s - tuning.window_s / 2]
    if not due:
        return f
    errors = [c * math.exp(-dt / tuning.error_memory_s) for c in f.errors]
    skill = list(f.skill)
    gain = 1 - math.exp(-dt / tuning.skill_memory_s)
    actual = f.level
    for _, forecast, *each in due:
        errors[_bin(actual, forecast)] += 1.0
        for i, guess in enumerate(each):
            skill[i] += gain * (_log_ratio(actual, guess) ** 2 - skill[i])
    return replace(f, made=f.made[len(due) :], errors=tuple(errors), skill=tuple(skill))


def scaled(f: Forecaster, factor: float) -> Forecaster:
    """Return the forecaster in other units, for a worker that turned out to be faster or slower."""
    return replace(
        f, levels=tuple(factor * v for v in f.levels), trends=tuple(factor * v for v in f.trends),
        recent=tuple((at, factor * rate) for at, rate in f.recent),
        made=tuple((at, *(factor * v for v in each)) for at, *each in f.made),
        shape=tuple(factor * v for v in f.shape),
    )  # fmt: skip


def prior() -> tuple[float, ...]:
    """Return the initial histogram of errors: about 20 %, with the weight of two forecasts."""
    weights = [math.exp(-(((i - _MIDDLE) * ERROR_STEP / _PRIOR_SPREAD) ** 2) / 2) for i in range(ERROR_BINS)]
    return tuple(_PRIOR_FORECASTS * w / sum(weights) for w in weights)


def _log_ratio(actual: float, forecast: float) -> float:
    most = _MIDDLE * ERROR_STEP
    return max(-most, min(most, math.log(max(actual, TINY) / max(forecast, TINY))))


def _bin(actual: float, forecast: float) -> int:
    return _MIDDLE + round(_log_ratio(actual, forecast) / ERROR_STEP)


def _shape(f: Forecaster, now_s: float, interval_s: float, rate: float, tuning: Tuning) -> tuple[float, ...]:
    shape = list(f.shape or [0.0] * SHAPE_BINS)
    i = int(now_s % DAY_S / DAY_S * SHAPE_BINS)
    # On the first day a bin is filled with its plain mean; later days change it by 1/shape_days
    # each.
    days = max(1.0, min(tuning.shape_days, f.shape_seen_s / DAY_S + 1))
    if f.shape_seen_s < DAY_S and shape[i] == 0.0:
        shape[i] = rate
    else:
        shape[i] += (rate - shape[i]) * min(1.0, interval_s / (DAY_S / SHAPE_BINS) / days)
    return tuple(shape)


def seasonal(f: Forecaster, at_s: float) -> float:
    """Return the daily shape at a time, interpolated linearly between the middles of the bins.

    NaN unless two days are known.
    """
    if f.shape_seen_s < 2 * DAY_S:
        return math.nan
    x = at_s % DAY_S / DAY_S * SHAPE_BINS - 0.5
    i = math.floor(x)
    return f.shape[i % SHAPE_BINS] * (i + 1 - x) + f.shape[(i + 1) % SHAPE_BINS] * (x - i)


def predict(f: Forecaster, horizon_s: float, tuning: Tuning) -> tuple[float, ...]:
    """Return the expected rate at the horizon: combined, and then of each forecaster.

    Only (NaN,) is returned before the first update.
    """
    if not f.levels:
        return (math.nan,)
    then, now = seasonal(f, f.updated_s + horizon_s), seasonal(f, f.updated_s)
    each = []
    for level, trend in zip(f.levels, f.trends, strict=True):
        # Only a rise is expected to continue: a fall that ends early costs objectives, while one
        # that is noticed late costs a few GPU-minutes.
        ahead = level + max(0.0, trend) * tuning.damping_s * (1 - math.exp(-horizon_s / tuning.damping_s))
        if now > 0 and then > 0:
            ahead = (ahead + level * min(2.0, max(1 / 2, then / now))) / 2
        each.append(min(ahead, 2 * level))
    # A forecaster whose level is further below the last minute than it ever errs has missed a rise.
    off = [(_log_ratio(f.level, level) / 2) ** 2 if f.level > level else 0.0 for level in f.levels]
    weights = [max(s, o, TINY) ** -tuning.skill_power for s, o in zip(f.skill, off, strict=True)]
    return (sum(w * e for w, e in zip(weights, each, strict=True)) / sum(weights), *each)


def least(f: Forecaster, *, overrun: bool = False) -> float:
    """Return a rate that the last two intervals show even if both erred twice as much as usual.

    It is 0 before the second interval. While the workers are overrun, it is that of the last
    interval.
    """
    if overrun and f.recent:
        return f.recent[-1][1]
    if len(f.recent) < 2:
        return 0.0
    return min(rate for _, rate in f.recent[-2:]) * math.exp(-2 * math.sqrt(min(f.skill)))


def remember(f: Forecaster, due_s: float, forecasts: tuple[float, ...]) -> Forecaster:
    """Remember a forecast of `predict`, to be judged when it is due."""
    return replace(f, made=(*f.made, (due_s, *forecasts))[-SHAPE_BINS:])


def ratios(f: Forecaster) -> list[tuple[float, float]]:
    """Return (actual / forecast, probability) in ascending order."""
    counts = f.errors or prior()
    least = TINY * sum(counts)
    kept = [(i, count) for i, count in enumerate(counts) if count > least]
    total = sum(count for _, count in kept)
    return [(math.exp((i - _MIDDLE) * ERROR_STEP), count / total) for i, count in kept]
