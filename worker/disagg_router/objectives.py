"""PURE: The latency objectives of requests, and the deadlines that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

_TIMES_ALONE = 5.0  # a long prompt may take so many times what it takes alone


@dataclass(frozen=True, slots=True)
class Objectives:
    """What `disagg_router_objective_requests_total` counts against; None: not counted.

    `prefill_s`: a, b and c of the time that a prompt of n uncached tokens takes alone, a + b*n +
    c*n^2: a long one can't be faster.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    prefill_s: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def alone_s(self, uncached_tokens: int) -> float:
        a, b, c = self.prefill_s
        return a + b * uncached_tokens + c * uncached_tokens * uncached_tokens

    def ttft_limit_s(self, uncached_tokens: int) -> float | None:
        return None if self.ttft_s is None else max(self.ttft_s, _TIMES_ALONE * self.alone_s(uncached_tokens))
