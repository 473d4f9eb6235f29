"""PURE: Builds a policy state from the history of the previous days in a metrics store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from disagg_operator.autoscaling.policy import forecast
from disagg_operator.autoscaling.policy.forecast import Forecaster
from disagg_operator.autoscaling.policy.predictive import Settings, State


@dataclass(frozen=True, slots=True)
class Minute:
    """Sums over the minute that ends at `at_s`, on the clock of the observations that follow."""

    at_s: float
    requests: float
    prompt_tokens: float
    output_tokens: float

    def times(self, factor: float) -> Minute:
        """Return the same minute with its traffic multiplied by `factor`."""
        return Minute(self.at_s, factor * self.requests, factor * self.prompt_tokens, factor * self.output_tokens)


def seed(settings: Settings, minutes: Iterable[Minute]) -> State:
    """Return a state with the forecasters' daily shape, errors and skill, learned from minutes.

    The minutes must be in order of time. Everything that depends on absolute work (levels, miss
    curves) starts afresh, because the sums hold no second moment and no objectives.
    """
    prefill, decode = Forecaster(), Forecaster()
    horizon_s = settings.cold_start_s + 45.0
    output, prompt = 0.0, 0.0
    profile, tuning = settings.profile, settings.tuning
    for m in minutes:
        if m.requests <= 0:
            continue
        mean = m.prompt_tokens / m.requests
        work = profile.prefill_work_s(m.requests, m.prompt_tokens, 2 * mean * m.prompt_tokens) / 60
        output += 0.05 * (m.output_tokens / m.requests - output)
        prompt += 0.05 * (mean - prompt)
        made = m.output_tokens / 60 / profile.decode_tokens_per_s(settings.tpot_s, prompt + output / 2)
        prefill, decode = (_see(f, m.at_s, rate, horizon_s, tuning) for f, rate in ((prefill, work), (decode, made)))
    state = State()
    fresh = [replace(f, levels=(), trends=(), recent=(), made=()) for f in (prefill, decode)]
    return replace(
        state, prefill=replace(state.prefill, demand=fresh[0]), decode=replace(state.decode, demand=fresh[1])
    )


def _see(f: Forecaster, at_s: float, rate: float, horizon_s: float, tuning: forecast.Tuning) -> Forecaster:
    f = forecast.update(f, at_s, 60.0, rate, tuning)
    return forecast.remember(f, at_s + horizon_s, forecast.predict(f, horizon_s, tuning))
