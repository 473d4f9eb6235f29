"""A cluster that serves as much as its workers can, and obeys the predictive policy at once."""

from __future__ import annotations

from collections.abc import Callable

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals, Targets
from disagg_operator.autoscaling.policy.predictive import PoolLimits, Settings, State, step
from disagg_operator.performance.profile import PROFILES

PROFILE = PROFILES["70b-h100-tp4"]
RULES = Settings(PROFILE, 0.060, PoolLimits(1, 40, 4), PoolLimits(1, 40, 4))
PROMPT, OUTPUT = 1000.0, 200.0


def look(
    now_s: float,
    rate: float,
    prefill: Pods,
    decode: Pods,
    *,
    missed: float = 0.0,
    waiting_tokens: float = 0.0,
    decode_waiting: float = 0.0,
) -> Observation:
    """Return fifteen seconds of `rate` requests per second, all of one length.

    If there is more work than the workers can do, all requests miss their objective, else `missed`.
    """
    n = 15 * rate
    running = rate * OUTPUT * 0.045
    late = 1.0 if prefill.ready < PROFILE.prefill_work_s(rate, rate * PROMPT, rate * PROMPT**2) else missed
    slow = (
        1.0 if decode.ready * PROFILE.decode_tokens_per_s(0.97 * 0.06, PROMPT + OUTPUT / 2) < rate * OUTPUT else missed
    )
    return Observation(
        now_s,
        15.0,
        PrefillSignals(
            prefill, n, n * PROMPT, n * PROMPT**2, waiting_tokens / PROMPT, waiting_tokens,
            1.0, 1.0, n, n * (1 - late),
        ),
        DecodeSignals(
            decode, decode_waiting, running, running * (PROMPT + OUTPUT / 2), 450_000.0,
            n * OUTPUT, n, n * OUTPUT, n * PROMPT, n, n * (1 - slow),
        ),
    )  # fmt: skip


def drive(
    rules: Settings,
    rate: Callable[[float], float],
    seconds: float,
    state: State | None = None,
    sizes: tuple[int, int] = (4, 4),
    begin_s: float = 0.0,
    change: Callable[[Observation], Observation] = lambda o: o,
) -> tuple[list[Targets], State]:
    """Run the policy on a cluster that follows it at once."""
    state, targets = state or State(), [Targets(*sizes)]
    now = begin_s
    while now < begin_s + seconds:
        now += 15
        p, d = (Pods(n, n, cold_start_s=120.0) for n in (targets[-1].prefill, targets[-1].decode))
        answer, state = step(rules, change(look(now, rate(now), p, d)), state)
        targets.append(answer)
    return targets[1:], state


def steady(rate: float = 40.0, rules: Settings = RULES) -> tuple[Targets, State]:
    targets, state = drive(rules, lambda _: rate, 3600, sizes=(8, 8))
    return targets[-1], state
