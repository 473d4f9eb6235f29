"""Published throughputs of one pool, and what the planner says of the same pool.

The measurements are those of TensorRT-LLM's performance overview: a client that never waits, all
prompts and all answers of one length, FP8 weights and FP8 KV. No constant of the planner is fitted
to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from disagg_operator.performance.hardware import GPUS, NETWORKS
from disagg_operator.performance.model_shape import named
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.roof_line import EFFICIENCIES, estimate
from disagg_operator.planning.capacity import Infeasible
from disagg_operator.planning.deployment_plan import Deployment, Question, best_disaggregated, best_monolithic
from disagg_operator.planning.traffic import LatencyObjectives, LogNormal, Traffic

SOURCE = "https://github.com/NVIDIA/TensorRT-LLM/blob/main/docs/source/developer-guide/perf-overview.md"
LOW, HIGH = 0.8, 1.1

_PERCENTILE = 0.5
_OBJECTIVES = LatencyObjectives(ttft_s=60.0, tpot_s=1.0, percentile=_PERCENTILE)
_REQUESTS_PER_S = 300.0  # so many that one replica more or less does not matter


@dataclass(frozen=True, slots=True)
class Row:
    """A published measurement."""

    model: str
    gpu: str
    gpus: int
    """The number of GPUs of a replica."""
    spread: bool
    """Whether experts are distributed and each GPU computes attention for its own sequences."""
    prompt_tokens: int
    output_tokens: int
    published: float
    """Output tokens per second per GPU."""

    @property
    def parallel(self) -> str:
        """The way in which a replica is split over its GPUs."""
        return f"{'experts' if self.spread else 'tensor'} {self.gpus}"

    @property
    def profile(self) -> Profile:
        """The profile of a replica according to the roof line."""
        shape = named(self.model)
        assert shape is not None
        held = float(self.prompt_tokens + self.output_tokens)
        found = estimate(shape.at_bits(8, 8), GPUS[self.gpu], self.gpus, EFFICIENCIES["tuned"], held, self.spread)
        assert found is not None
        return found

    @property
    def question(self) -> Question:
        """The question to the planner, with objectives that do not limit it."""
        shape = named(self.model)
        assert shape is not None
        lengths = [LogNormal(n, 0.0).lengths(_PERCENTILE) for n in (self.prompt_tokens, self.output_tokens)]
        return Question(
            shape.at_bits(8, 8), Traffic(_REQUESTS_PER_S, *lengths), _OBJECTIVES, (GPUS[self.gpu],),
            NETWORKS["rdma-400"], measured={self.gpu: [self.profile]},
        )  # fmt: skip


ROWS = (
    Row("llama-3.3-70b", "H100", 2, False, 1000, 1000, 2209),
    Row("llama-3.3-70b", "H200", 2, False, 1000, 1000, 2587),
    Row("llama-3.3-70b", "H100", 2, False, 8192, 1024, 398),
    Row("llama-3.3-70b", "H200", 2, False, 8192, 1024, 537),
    Row("deepseek-r1", "H200", 8, True, 1000, 1000, 1627),
)
# Rows of other models with experts in the same table, which were computed once and not adapted to.
OTHERS = (
    Row("qwen3-235b-a22b", "H200", 4, True, 1000, 1000, 3288),
    Row("qwen3-235b-a22b", "H100", 8, True, 1000, 1000, 1932),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the planner says of a row, in output tokens per second per GPU."""

    one_pool: float
    two_pools: float


def answer(row: Row) -> Answer:
    """Return the throughput of the planned pools."""
    q = row.question
    return Answer(_per_gpu(q, best_monolithic(q)), _per_gpu(q, best_disaggregated(q)))


def _per_gpu(q: Question, found: Deployment | Infeasible) -> float:
    assert isinstance(found, Deployment), found
    return q.traffic.output_tokens_per_s / found.gpus


def without_fusion(row: Row) -> float:
    """Return the throughput if a step computed only decode, and each chunk took a step of its own.

    The weights are then read once more for each chunk, which is what fusing saves.
    """
    p = row.profile
    serial = replace(p, a_s=p.a_s + p.reading_s(p.max_running))
    q = replace(row.question, measured={row.gpu: [serial]})
    return _per_gpu(q, best_monolithic(q))
