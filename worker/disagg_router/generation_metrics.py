"""The metrics of generations: what became of each, and where its time went."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from disagg_router.objectives import Objectives
from disagg_wire import series

_STAGE_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    600.0,
)
_HANDOVER_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_GAP_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


class GenerationMetrics:
    """The generations of a router; each choice of an answer is one."""

    def __init__(self, registry: CollectorRegistry, objectives: Objectives) -> None:
        self._outcomes = Counter(
            series.ROUTER_GENERATIONS,
            "Generations by what became of them; what clients asked for in vain is none",
            [series.OUTCOME],
            registry=registry,
        )
        self._stages = Histogram(
            series.ROUTER_STAGE_SECONDS,
            f"Duration of stages: {', '.join(series.TTFT_STAGES)} add up to the time to the first token;"
            " transfer and its exposed part, and decode, which is all after the first token, are observed at the end",
            [series.STAGE],
            registry=registry,
            buckets=_STAGE_S,
        )
        self._handover = Histogram(
            series.ROUTER_HANDOVER_SECONDS,
            "First to second token of answers whose KV was moved in between",
            registry=registry,
            buckets=_HANDOVER_S,
        )
        self._gap = Histogram(
            series.ROUTER_LONGEST_GAP_SECONDS,
            "Longest time without a token after the first one, of each generation",
            registry=registry,
            buckets=_GAP_S,
        )
        limits = Gauge(series.ROUTER_OBJECTIVE_SECONDS, "Objectives as declared", [series.OBJECTIVE], registry=registry)
        for objective, limit_s in ((series.TTFT, objectives.ttft_s), (series.TPOT, objectives.tpot_s)):
            if limit_s is not None:
                limits.labels(objective).set(limit_s)
        for outcome in series.GENERATION_OUTCOMES:
            self._outcomes.labels(outcome)

    def over(self, outcome: str) -> None:
        """Count a generation by its outcome."""
        self._outcomes.labels(outcome).inc()

    def first_token(self, stages: Mapping[str, float]) -> None:
        """Observe the stages of a generation that has a first token."""
        for stage in series.TTFT_STAGES:
            self._stages.labels(stage).observe(stages.get(stage, 0.0))

    def stage(self, stage: str, seconds: float | None) -> None:
        """Observe a stage after the first token, if its duration is known."""
        if seconds is not None:
            self._stages.labels(stage).observe(seconds)

    def second_token(self, seconds: float) -> None:
        self._handover.observe(seconds)

    def gap(self, seconds: float) -> None:
        self._gap.observe(seconds)
