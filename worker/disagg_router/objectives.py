"""PURE: The latency objectives of requests, and the deadlines that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

_TIMES_ALONE = 5.0  # a long prompt may take this many times as long as it takes alone


@dataclass(frozen=True, slots=True)
class Objectives:
    """The latency objectives that `disagg_router_objective_requests_total` counts against.

    An objective that is None is not counted.
    """

    ttft_s: float | None = None
    """The longest time to first token of a prompt that is not long, in seconds."""
    tpot_s: float | None = None
    """The longest time per output token after the first, in seconds."""
    prefill_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The coefficients a, b and c of a + b*n + c*n^2, the seconds that a prompt of n uncached
    tokens takes alone. A long prompt cannot be faster than that.
    """

    def without_patience(self) -> Objectives:
        """Return the objectives that are the same for prompts of any length."""
        return Objectives(self.ttft_s, self.tpot_s)

    def alone_s(self, uncached_tokens: int) -> float:
        a, b, c = self.prefill_s
        return a + b * uncached_tokens + c * uncached_tokens * uncached_tokens

    def ttft_limit_s(self, uncached_tokens: int) -> float | None:
        return None if self.ttft_s is None else max(self.ttft_s, _TIMES_ALONE * self.alone_s(uncached_tokens))
