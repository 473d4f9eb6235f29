"""PURE: what is asked of a deployment: requests a second, their lengths, and the objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from disagg_operator.performance.model_shape import PlanError

_P99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts.

    `second_moment`: planning on means alone forgets the tail. `tail`: the objective's percentile.
    """

    mean: float
    second_moment: float
    tail: float

    @property
    def variance(self) -> float:
        return max(0.0, self.second_moment - self.mean**2)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lengths as people produce them; sigma 0: all alike."""

    mean: float
    sigma: float

    @property
    def mu(self) -> float:
        return math.log(self.mean) - self.sigma**2 / 2

    def lengths(self, percentile: float) -> Lengths:
        tail = math.exp(self.mu + self.sigma * NormalDist().inv_cdf(percentile)) if self.sigma else self.mean
        return Lengths(self.mean, self.mean**2 * math.exp(self.sigma**2), tail)


def log_normal(mean: float, p99: float | None, field: str) -> LogNormal:
    """From mean and 99th percentile; without the latter the coefficient of variation is 1 (that of
    public traces is 0.9 to 2). Raises PlanError.
    """
    if not (math.isfinite(mean) and mean >= 1):
        raise PlanError(f"{field}: the mean must be 1 token or more, not {mean:g}")
    if p99 is None:
        return LogNormal(mean, math.sqrt(math.log(2)))
    ratio = p99 / mean
    most = math.exp(_P99**2 / 2)
    if not 1 <= ratio <= most:
        raise PlanError(f"{field}: the 99th percentile must be 1 to {most:.1f} times the mean, not {ratio:.2g} times")
    # p99 / mean = exp(z sigma - sigma^2 / 2); the smaller root.
    return LogNormal(mean, _P99 - math.sqrt(_P99**2 - 2 * math.log(ratio)))


def of_samples(values: Sequence[float], percentile: float) -> Lengths:
    """The moments of what was seen. `values` is not empty."""
    n, ordered = len(values), sorted(values)
    return Lengths(
        sum(values) / n, sum(v * v for v in values) / n, float(ordered[min(n - 1, math.ceil(percentile * n) - 1)])
    )


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests a second, and the lengths of prompts (uncached) and answers."""

    requests_per_s: float
    prompt: Lengths
    output: Lengths

    def at(self, requests_per_s: float) -> Traffic:
        return replace(self, requests_per_s=requests_per_s)

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.requests_per_s * self.prompt.mean

    @property
    def output_tokens_per_s(self) -> float:
        return self.requests_per_s * self.output.mean

    @property
    def held_tokens(self) -> float:
        """What a running sequence holds, on average over its life."""
        return self.prompt.mean + self.output.mean / 2


@dataclass(frozen=True, slots=True)
class LatencyObjectives:
    """Times that the `percentile` (0.99: 99 of 100 requests) keeps."""

    ttft_s: float
    tpot_s: float
    percentile: float = 0.99

    @property
    def z(self) -> float:
        """Standard deviations above the mean at the percentile."""
        return NormalDist().inv_cdf(self.percentile)
