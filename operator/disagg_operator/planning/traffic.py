"""PURE: The traffic of a deployment: the request rate, the lengths, and the latency objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from disagg_operator.performance.model_shape import PlanError

_P99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of numbers of tokens."""

    mean: float
    second_moment: float
    """The mean of the squares; planning with means alone would ignore the tail."""
    tail: float
    """The length at the percentile of the objectives."""

    @property
    def variance(self) -> float:
        """The variance; 0 if rounding would make it negative."""
        return max(0.0, self.second_moment - self.mean**2)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A log-normal distribution of lengths, which is typical of real requests."""

    mean: float
    sigma: float
    """The standard deviation of the logarithm; 0: all lengths are equal."""

    @property
    def mu(self) -> float:
        """The mean of the logarithm."""
        return math.log(self.mean) - self.sigma**2 / 2

    def lengths(self, percentile: float) -> Lengths:
        """Return the moments of the distribution, and its tail at the percentile."""
        tail = math.exp(self.mu + self.sigma * NormalDist().inv_cdf(percentile)) if self.sigma else self.mean
        return Lengths(self.mean, self.mean**2 * math.exp(self.sigma**2), tail)


def log_normal(mean: float, p99: float | None, field: str) -> LogNormal:
    """Return the distribution with this mean and 99th percentile. Raises PlanError naming `field`.

    Without a percentile, the coefficient of variation is 1; that of public traces is 0.9 to 2.
    """
    if not (math.isfinite(mean) and mean >= 1):
        raise PlanError(f"{field}: the mean must be 1 token or more, not {mean:g}")
    if p99 is None:
        return LogNormal(mean, math.sqrt(math.log(2)))
    ratio = p99 / mean
    most = math.exp(_P99**2 / 2)
    if not 1 <= ratio <= most:
        raise PlanError(f"{field}: the 99th percentile must be 1 to {most:.1f} times the mean, not {ratio:.2g} times")
    # p99 / mean = exp(z sigma - sigma^2 / 2), of which this is the smaller root.
    return LogNormal(mean, _P99 - math.sqrt(_P99**2 - 2 * math.log(ratio)))


def of_samples(values: Sequence[float], percentile: float) -> Lengths:
    """Return the moments and the tail of observed lengths. `values` must not be empty."""
    n, ordered = len(values), sorted(values)
    return Lengths(
        sum(values) / n, sum(v * v for v in values) / n, float(ordered[min(n - 1, math.ceil(percentile * n) - 1)])
    )


@dataclass(frozen=True, slots=True)
class Traffic:
    """The rate of requests and the lengths of their prompts and answers."""

    requests_per_s: float
    prompt: Lengths
    """The uncached tokens of prompts."""
    output: Lengths
    """The tokens of answers."""

    def at(self, requests_per_s: float) -> Traffic:
        """Return the same traffic at another rate."""
        return replace(self, requests_per_s=requests_per_s)

    @property
    def prompt_tokens_per_s(self) -> float:
        """The number of prompt tokens per second."""
        return self.requests_per_s * self.prompt.mean

    @property
    def output_tokens_per_s(self) -> float:
        """The number of output tokens per second."""
        return self.requests_per_s * self.output.mean

    @property
    def held_tokens(self) -> float:
        """The number of tokens that a running sequence holds on average over its life."""
        return self.prompt.mean + self.output.mean / 2


@dataclass(frozen=True, slots=True)
class LatencyObjectives:
    """The latencies that a share of the requests must not exceed."""

    ttft_s: float
    """The time to the first token."""
    tpot_s: float
    """The time per output token."""
    percentile: float = 0.99
    """The share of the requests; 0.99 is 99 of 100."""

    @property
    def z(self) -> float:
        """The number of standard deviations above the mean at the percentile."""
        return NormalDist().inv_cdf(self.percentile)
