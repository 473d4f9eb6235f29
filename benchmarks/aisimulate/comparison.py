"""The comparison of what the planner says of a shape with what AISimulate said."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.aisimulate.referee import Said
from benchmarks.aisimulate.shapes import Shape, throughputs
from disagg_operator.performance.roof_line import EFFICIENCIES, estimate

EVEN = "even"
CLOSE = 1.10
"""Throughputs that differ by less are even, as in the verdicts of `disagg plan`."""
STEPS_WITHIN = 0.15
LEAST_AGREEING = 11


@dataclass(frozen=True, slots=True)
class Comparison:
    """The planner and AISimulate on a shape."""

    shape: Shape
    said: Said
    times_ms: tuple[float, float, float]
    """The times of the roof line: a prompt alone, a step of one sequence, and one of the batch."""
    one_pool: float
    two_pools: float
    """The output tokens per second per GPU that are planned with the roof line."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """The times of the roof line divided by those of AISimulate."""
        return tuple(ours / theirs for ours, theirs in zip(self.times_ms, self.said.times_ms, strict=True))

    @property
    def ours(self) -> float:
        """The throughput of two pools divided by that of one, as planned."""
        return self.two_pools / self.one_pool

    @property
    def theirs(self) -> float:
        """The throughput of two pools divided by that of one, according to AISimulate."""
        return self.said.two_pools / self.said.one_pool

    @property
    def with_tables(self) -> float:
        """The throughput of two pools divided by that of one, as planned with kernel tables."""
        return self.said.planned_two / self.said.planned_one

    @property
    def agrees(self) -> bool:
        """Whether the verdicts are the same: the same is better, or both are even."""
        both_even = verdict(self.ours) == verdict(self.theirs) == EVEN
        return both_even or (self.ours > 1) == (self.theirs > 1)


def verdict(two_by_one: float) -> str:
    """Return which design is better, given the throughput of two pools divided by that of one."""
    return "two pools" if two_by_one > CLOSE else "one pool" if two_by_one < 1 / CLOSE else EVEN


def compare(shape: Shape, said: Said) -> Comparison:
    """Return the comparison for a shape."""
    tokens = shape.prompt_tokens + shape.output_tokens
    p = estimate(shape.shape, shape.hardware, shape.tensor, EFFICIENCIES["tuned"], tokens)
    assert p is not None, shape
    times_s = (
        p.isolated_s(shape.prompt_tokens),
        p.step_s(1, shape.held_tokens),
        p.step_s(shape.batch, shape.batch * shape.held_tokens),
    )
    prompt_ms, first_ms, step_ms = (1000 * s for s in times_s)
    return Comparison(shape, said, (prompt_ms, first_ms, step_ms), *throughputs(shape.question))
