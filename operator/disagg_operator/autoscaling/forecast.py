"""PURE: what a rate will be one horizon from now, and how wrong such forecasts have been.

Level and damped trend by Holt's method (E. S. Gardner, "Exponential smoothing: the state of the art", 1985, with a time constant in place
of a factor per step, so that the interval may vary), bent by the daily shape where two days of it are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

DAY_S = 86_400.0
SHAPE_BINS = 144  # of ten minutes
ERROR_STEP = 0.05
ERROR_BINS = 49  # log(actual / forecast) from -1.2 to 1.2
_MIDDLE = ERROR_BINS // 2
_KEPT_FORECASTS = 128


@dataclass(frozen=True, slots=True)
class Tuning:
    """Time constants in seconds."""

    level_s: float = 60.0
    trend_s: float = 300.0
    damping_s: float = 300.0  # how long a trend is believed to last
    error_memory_s: float = 4 * 3600.0
    shape_days: float = 3.0


@dataclass(frozen=True, slots=True)
class Forecaster:
    """State for one rate. `made`: (due time, forecast) not judged yet; `errors`: decayed histogram of log(actual / forecast)."""

    level: float = math.nan
    trend: float = 0.0  # per second
    updated_s: float = math.nan
    made: tuple[tuple[float, float], ...] = ()
    errors: tuple[float, ...] = ()
    shape: tuple[float, ...] = ()  # mean rate of each ten minutes of a day
    shape_seen_s: float = 0.0  # how much time went into it


def update(f: Forecaster, now_s: float, interval_s: float, rate: float, tuning: Tuning) -> Forecaster:
    """Take in the rate of the interval that ends at now_s."""
    if math.isnan(f.level):
        return replace(f, level=rate, updated_s=now_s, shape=_shape(f, now_s, interval_s, rate, tuning), shape_seen_s=interval_s)
    dt = max(now_s - f.updated_s, 1e-3)
    expected = f.level + f.trend * dt
    gain = 1 - math.exp(-dt / tuning.level_s)
    level = max(0.0, expected + gain * (rate - expected))
    trend_gain = 1 - math.exp(-dt / tuning.trend_s)
    trend = f.trend + trend_gain * ((level - f.level) / dt - f.trend)
    due = [(at, made) for at, made in f.made if at <= now_s]
    errors = f.errors or prior()
    decay = math.exp(-dt / tuning.error_memory_s)
    if due:
        counts = [c * decay for c in errors]
        for _, made in due:
            counts[_bin(rate, made)] += 1.0
        errors = tuple(counts)
    return Forecaster(
        level, trend, now_s, f.made[len(due) :], errors, _shape(f, now_s, interval_s, rate, tuning), f.shape_seen_s + interval_s
    )


def prior() -> tuple[float, ...]:
    """Before anything is known: errors of about 25 %, worth ten minutes of watching."""
    weights = [math.exp(-(((i - _MIDDLE) * ERROR_STEP / 0.25) ** 2) / 2) for i in range(ERROR_BINS)]
    return tuple(12 * w / sum(weights) for w in weights)


def _bin(actual: float, forecast: float) -> int:
    ratio = math.log(max(actual, 1e-9) / max(forecast, 1e-9))
    return max(0, min(ERROR_BINS - 1, _MIDDLE + round(ratio / ERROR_STEP)))


def _shape(f: Forecaster, now_s: float, interval_s: float, rate: float, tuning: Tuning) -> tuple[float, ...]:
    shape = list(f.shape or [0.0] * SHAPE_BINS)
    i = int(now_s % DAY_S / DAY_S * SHAPE_BINS)
    # The first day fills a bin with its plain mean; later days change it by 1/shape_days each.
    days = max(1.0, min(tuning.shape_days, f.shape_seen_s / DAY_S + 1))
    if f.shape_seen_s < DAY_S and shape[i] == 0.0:
        shape[i] = rate
    else:
        shape[i] += (rate - shape[i]) * min(1.0, interval_s / (DAY_S / SHAPE_BINS) / days)
    return tuple(shape)


def seasonal(f: Forecaster, at_s: float) -> float:
    """The daily shape at a time, straight lines between the middles of the bins; NaN where two days are not known."""
    if f.shape_seen_s < 2 * DAY_S:
        return math.nan
    x = at_s % DAY_S / DAY_S * SHAPE_BINS - 0.5
    i = math.floor(x)
    return f.shape[i % SHAPE_BINS] * (i + 1 - x) + f.shape[(i + 1) % SHAPE_BINS] * (x - i)


def predict(f: Forecaster, horizon_s: float, tuning: Tuning) -> float:
    """The expected rate at the horizon; NaN before the first update."""
    if math.isnan(f.level):
        return math.nan
    by_trend = f.level + f.trend * tuning.damping_s * (1 - math.exp(-horizon_s / tuning.damping_s))
    then, now = seasonal(f, f.updated_s + horizon_s), seasonal(f, f.updated_s)
    if now > 0 and then > 0:
        by_trend = (by_trend + f.level * min(2.0, max(0.5, then / now))) / 2
    return max(0.0, min(by_trend, 2.5 * f.level), 0.3 * f.level)


def remember(f: Forecaster, due_s: float, forecast: float) -> Forecaster:
    """A forecast to be judged when its time has come."""
    return replace(f, made=(*f.made, (due_s, forecast))[-_KEPT_FORECASTS:])


def ratios(f: Forecaster) -> list[tuple[float, float]]:
    """(actual / forecast, probability), ascending."""
    errors = f.errors or prior()
    total = sum(errors)
    return [(math.exp((i - _MIDDLE) * ERROR_STEP), c / total) for i, c in enumerate(errors) if c > 1e-4 * total]
