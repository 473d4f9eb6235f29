"""PURE: from measured times to a Profile.

Coefficients are not negative; errors count relative to the time that was measured.

Prefill is measured in two ways. Alone, a prompt's first token takes `overhead + a + b*n + c*n^2`.
With one prompt always waiting behind the one that is computed, a prompt takes `a + b*n + c*n^2`:
nothing but the worker's own time. The difference is what router and network add.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from disagg_operator.performance.profile import Profile

_LEAST_POINTS, _LEAST_QUEUED = 3, 2
_LEAST_WAIT_S = 0.010


class FitError(ValueError):
    """Too little was measured; the message says of what."""


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """Median time to the first token of a prompt alone, and, where it was measured, the time a
    prompt takes when they queue. `least_s`: the shortest that was seen alone, which others on the
    machine have disturbed the least.
    """

    tokens: int
    alone_s: float
    queued_s: float | None = None
    least_s: float | None = None


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """One decode step over so many sequences that hold so many tokens together, of which so many
    joined just before (on average).
    """

    sequences: float
    kv_tokens: float
    step_s: float
    joined: float = 0.0


@dataclass(frozen=True, slots=True)
class ShortAnswer:
    """An answer that decode had to itself, after a pause: seconds from its first token to its last."""

    prompt_tokens: int
    output_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Residual:
    """A measured time and what the fitted profile says."""

    what: str
    measured_s: float
    fitted_s: float

    @property
    def error(self) -> float:
        """Relative, 0.1: the profile is 10 % too slow."""
        return self.fitted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True)
class Fitted:
    """A profile and how well it says what was measured."""

    profile: Profile
    prefill: tuple[Residual, ...]
    decode: tuple[Residual, ...]

    @property
    def worst_error(self) -> float:
        return max(abs(r.error) for r in (*self.prefill, *self.decode))


@dataclass(frozen=True, slots=True)
class Limits:
    """What can't be measured from outside: what one replica has."""

    gpus: int = 1
    kv_tokens: int = 0
    batch_tokens: int = 4096
    max_running: int = 256


def non_negative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Least squares of relative errors with coefficients >= 0: the best of all choices of
    coefficients that are 0. For a few columns.
    """
    n = len(rows[0])
    scaled = [[x / v for x in row] for row, v in zip(rows, values, strict=True)]
    best, least = [0.0] * n, math.inf
    for size in range(1, n + 1):
        for chosen in itertools.combinations(range(n), size):
            found = _solve([[row[i] for i in chosen] for row in scaled])
            if found is None or min(found) < 0:
                continue
            error = sum((sum(row[i] * x for i, x in zip(chosen, found, strict=True)) - 1) ** 2 for row in scaled)
            if error < least - 1e-12:
                least = error
                best = [dict(zip(chosen, found, strict=True)).get(i, 0.0) for i in range(n)]
    return best


def _solve(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """The x that brings rows * x nearest to 1, by the normal equations with scaled columns; None
    where columns depend on each other.
    """
    n = len(rows[0])
    size = [math.sqrt(sum(r[i] * r[i] for r in rows)) or 1.0 for i in range(n)]
    m = [
        [sum(r[i] * r[j] for r in rows) / size[i] / size[j] for j in range(n)] + [sum(r[i] for r in rows) / size[i]]
        for i in range(n)
    ]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(m[k][i]))
        if abs(m[pivot][i]) < 1e-9:
            return None
        m[i], m[pivot] = m[pivot], m[i]
        for k in range(n):
            if k != i:
                factor = m[k][i] / m[i][i]
                m[k] = [x - factor * y for x, y in zip(m[k], m[i], strict=True)]
    return [m[i][n] / m[i][i] / size[i] for i in range(n)]


def fit(
    prefill: Sequence[PrefillPoint],
    decode: Sequence[DecodePoint],
    limits: Limits,
    answers: Sequence[ShortAnswer] = (),
    front_s: float = 0.0,
) -> Fitted:
    """Raises FitError."""
    _, full_tokens = batch_wait(
        [(p.tokens, p.least_s) for p in prefill if p.least_s is not None] or [(p.tokens, p.alone_s) for p in prefill]
    )
    # Behind others, prompts that wait to fill a batch are computed together: their times say
    # nothing of one.
    queued = [(p.tokens, p.queued_s) for p in prefill if p.queued_s is not None and p.tokens >= full_tokens]
    if len(prefill) < _LEAST_POINTS or len(queued) < _LEAST_QUEUED:
        few = f"{len(prefill)} lengths alone and of {len(queued)} behind others that wait for no batch"
        raise FitError(
            f"prefill: times of {few}; at least {_LEAST_POINTS} and {_LEAST_QUEUED} are needed: measure longer prompts"
        )
    if len(decode) < _LEAST_POINTS:
        raise FitError(f"decode: times of {len(decode)} batches, at least {_LEAST_POINTS} are needed")
    # One solution for both kinds of times: what prompts alone take more is overhead and wait.
    rows = [(1.0, n, n * n, 0.0, 0.0) for n, _ in queued] + [
        (1.0, p.tokens, p.tokens**2, 1.0, float(p.tokens < full_tokens)) for p in prefill
    ]
    a, b, c, overhead_s, wait_s = non_negative(rows, [s for _, s in queued] + [p.alone_s for p in prefill])
    d, e, f, h, take_in_s = non_negative(
        [(1.0, p.sequences, p.kv_tokens, p.sequences**2, p.joined) for p in decode], [p.step_s for p in decode]
    )
    if d <= 0:
        d = min(p.step_s for p in decode) * 1e-3  # a step is never free
    profile = Profile(
        limits.gpus, a, b, c, d, e, f, limits.kv_tokens, 0.0, limits.batch_tokens, limits.max_running,
        overhead_s, 0.0, wait_s, full_tokens, take_in_s, h, front_s,
    )  # fmt: skip
    profile = replace(
        profile, handover_s=max(0.0, median(_beside_steps_s(profile, a) for a in answers)) if answers else 0.0
    )
    alone = [Residual(f"{p.tokens} tokens alone", p.alone_s, _alone_s(profile, p.tokens)) for p in prefill]
    behind = [Residual(f"{n} tokens behind others", s, profile.isolated_s(n)) for n, s in queued]
    steps = [
        Residual(_what(p), p.step_s, profile.step_s(p.sequences, p.kv_tokens) + profile.take_in_s * p.joined)
        for p in decode
    ]
    return Fitted(profile, (*alone, *behind), tuple(steps))


def _beside_steps_s(profile: Profile, answer: ShortAnswer) -> float:
    """What an answer took more than its steps: the hand-over, and a first step that finds
    everything cold.
    """
    steps = answer.output_tokens - 1
    return answer.seconds - steps * profile.step_s(1, answer.prompt_tokens + answer.output_tokens / 2)


def _what(p: DecodePoint) -> str:
    joined = f", {p.joined:.2f} of them new" if p.joined else ""
    return f"{p.sequences:.0f} x {p.kv_tokens / p.sequences:.0f} tokens{joined}"


def _alone_s(profile: Profile, tokens: int) -> float:
    wait_s = profile.batch_wait_s if tokens < profile.batch_full_tokens else 0.0
    return profile.overhead_s + wait_s + profile.isolated_s(tokens)


def batch_wait(alone: Sequence[tuple[int, float]]) -> tuple[float, int]:
    """(wait, tokens from which on nothing is waited for), from prompts alone: the split of the
    lengths into short ones that wait and long ones that do not which explains their times best.
    None (0, 0) unless it halves the squares of the errors, and is 10 ms and a quarter of the
    shortest prompt's time or more.
    """
    points = sorted(alone)
    times = [s for _, s in points]

    def error(rows: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
        found = non_negative(rows, times)
        return sum(
            (sum(x * y for x, y in zip(row, found, strict=True)) / s - 1) ** 2
            for row, s in zip(rows, times, strict=True)
        ), found

    least, _ = error([(1.0, n, n * n) for n, _ in points])
    best = 0.0, 0
    limit = least / 2
    for i in range(1, len(points)):
        squares, found = error([(1.0, n, n * n, float(k < i)) for k, (n, _) in enumerate(points)])
        if squares < limit and found[3] >= max(_LEAST_WAIT_S, 0.25 * times[0]):
            limit, best = squares, (found[3], points[i][0])
    return best
