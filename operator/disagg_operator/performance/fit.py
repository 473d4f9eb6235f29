"""PURE: The fit of a Profile to measured times.

Coefficients are not negative. Errors are relative to the measured time.

Prefill is measured in two ways. The first token of a prompt alone takes `overhead + a + b*n +
c*n^2`. If one prompt always waits behind the one that is computed, a prompt takes `a + b*n +
c*n^2`, which is only the worker's own time. The difference is the time that router and network add.
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
    """Raised when too little was measured; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """The measured prefill times of prompts of one length."""

    tokens: int
    alone_s: float
    """The median time in seconds to the first token of a prompt alone."""
    queued_s: float | None = None
    """The time in seconds of one prompt while prompts queue, if it was measured."""
    least_s: float | None = None
    """The shortest time in seconds of a prompt alone, least disturbed by other processes."""


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """The measured time of a decode step."""

    sequences: float
    kv_tokens: float
    """The number of tokens that the sequences hold together."""
    step_s: float
    joined: float = 0.0
    """The average number of sequences that joined just before the step."""


@dataclass(frozen=True, slots=True)
class ShortAnswer:
    """An answer that a decode worker computed alone, after a pause."""

    prompt_tokens: int
    output_tokens: int
    seconds: float
    """The time from the first token to the last one."""


@dataclass(frozen=True, slots=True)
class Residual:
    """A measured time and the time according to the fitted profile."""

    what: str
    """The description of the measurement."""
    measured_s: float
    fitted_s: float

    @property
    def error(self) -> float:
        """The relative error; 0.1 means that the profile is 10 % too slow."""
        return self.fitted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted profile and its residuals."""

    profile: Profile
    prefill: tuple[Residual, ...]
    decode: tuple[Residual, ...]

    @property
    def worst_error(self) -> float:
        """The largest relative error of any residual, without its sign."""
        return max(abs(r.error) for r in (*self.prefill, *self.decode))


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a replica that can't be measured from outside."""

    gpus: int = 1
    kv_tokens: int = 0
    """The number of tokens that the KV cache holds."""
    batch_tokens: int = 4096
    """The maximum number of tokens of a prefill batch."""
    max_running: int = 256
    """The maximum number of sequences of a decode step."""


def non_negative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the coefficients >= 0 with the least sum of squares of relative errors.

    It tries all choices of coefficients that are 0, so it is meant for a few columns.
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
    """Return the x for which rows * x is closest to 1, by the normal equations with scaled columns.

    Returns None if the columns are linearly dependent.
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
    """Fit a profile to measured times.

    `answers` determine the hand-over time; `front_s` is the time of a router for a request, which
    is taken over as it is. Raises FitError if too little was measured.
    """
    _, full_tokens = batch_wait(
        [(p.tokens, p.least_s) for p in prefill if p.least_s is not None] or [(p.tokens, p.alone_s) for p in prefill]
    )
    # Behind others, prompts that wait to fill a batch are computed together, so their times say
    # nothing about a single one.
    queued = [(p.tokens, p.queued_s) for p in prefill if p.queued_s is not None and p.tokens >= full_tokens]
    if len(prefill) < _LEAST_POINTS or len(queued) < _LEAST_QUEUED:
        few = f"{len(prefill)} lengths alone and of {len(queued)} behind others that wait for no batch"
        raise FitError(
            f"prefill: times of {few}; at least {_LEAST_POINTS} and {_LEAST_QUEUED} are needed: measure longer prompts"
        )
    if len(decode) < _LEAST_POINTS:
        raise FitError(f"decode: times of {len(decode)} batches, at least {_LEAST_POINTS} are needed")
    # Both kinds of times are solved together: the additional time of prompts alone is overhead and
    # wait.
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
    """Return the time in seconds that an answer took in addition to its steps.

    It consists of the hand-over and of the delay of a first step with cold caches.
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
    """Return the time that short prompts wait for a batch to fill, and the length that avoids it.

    `alone` has the length and the time of prompts alone. The result is a wait in seconds and the
    number of tokens from which prompts do not wait. Of all splits into short prompts that wait and
    long ones that do not, it is the split that explains the times best. It is (0, 0) unless the
    split halves the sum of the squares of the errors, and the wait is at least 10 ms and at least a
    quarter of the shortest prompt's time.
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
