"""The shapes for which the planner and AISimulate are compared."""

from __future__ import annotations

from dataclasses import dataclass

from disagg_operator.performance.hardware import GPUS, NETWORKS, Gpu
from disagg_operator.performance.kernel_tables import SYSTEMS, TableSource
from disagg_operator.performance.model_shape import ModelShape, named
from disagg_operator.planning.deployment_plan import Deployment, Question, best_disaggregated, best_monolithic
from disagg_operator.planning.traffic import LatencyObjectives, LogNormal, Traffic

_PERCENTILE = 0.5
_REQUESTS_PER_S = 300.0  # so many that one replica more or less does not matter


@dataclass(frozen=True, slots=True)
class Shape:
    """A model on a GPU, with prompts and answers of one length, and objectives."""

    model: str
    bits: int
    """The bits of a weight, and of an element of the cache."""
    gpu: str
    tensor: int
    """The number of GPUs of the replica whose steps are compared."""
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_ms: float
    batch: int
    """The number of sequences of the decode step that is compared."""

    @property
    def title(self) -> str:
        """The name of the shape, by which its results are kept."""
        what = f"{self.model} {'FP8' if self.bits == 8 else 'BF16'}, {self.gpu}"
        return f"{what}, {self.prompt_tokens:,} / {self.output_tokens:,}"

    @property
    def shape(self) -> ModelShape:
        """The model."""
        found = named(self.model)
        assert found is not None
        return found.at_bits(self.bits, self.bits)

    @property
    def hardware(self) -> Gpu:
        """The GPU."""
        return GPUS[self.gpu]

    @property
    def source(self) -> TableSource:
        """The kernel tables."""
        return TableSource(next(s for s, gpu in SYSTEMS.items() if gpu == self.gpu), "vllm")

    @property
    def held_tokens(self) -> int:
        """The number of tokens that a sequence holds on average while it is decoded."""
        return self.prompt_tokens + self.output_tokens // 2

    @property
    def question(self) -> Question:
        """The question to the planner: one kind of GPU, and no tails, which AISimulate lacks."""
        lengths = [LogNormal(n, 0.0).lengths(_PERCENTILE) for n in (self.prompt_tokens, self.output_tokens)]
        objectives = LatencyObjectives(self.ttft_s, self.tpot_ms / 1000, _PERCENTILE)
        traffic = Traffic(_REQUESTS_PER_S, *lengths)
        return Question(self.shape, traffic, objectives, (self.hardware,), NETWORKS["rdma-400"])


def throughputs(q: Question) -> tuple[float, float]:
    """Return the planned output tokens per second per GPU of one pool and of two."""
    one, two = (
        q.traffic.output_tokens_per_s / d.gpus if isinstance(d, Deployment) else 0.0
        for d in (best_monolithic(q), best_disaggregated(q))
    )
    return one, two


SHAPES = (
    Shape("llama-3.1-8b", 16, "H100", 1, 1000, 250, 1.0, 25, 128),
    Shape("llama-3.1-8b", 16, "A100", 1, 4000, 500, 2.0, 40, 32),
    Shape("qwen3-32b", 16, "H100", 2, 1000, 1000, 1.0, 40, 128),
    Shape("qwen3-32b", 16, "H200", 2, 4000, 500, 2.0, 40, 64),
    Shape("qwen3-32b", 16, "H200", 2, 8000, 250, 4.0, 30, 32),
    Shape("llama-3.1-70b", 16, "H100", 4, 1000, 250, 2.0, 50, 256),
    Shape("llama-3.1-70b", 16, "H100", 4, 4000, 500, 2.0, 50, 64),
    Shape("llama-3.1-70b", 16, "H200", 4, 8000, 1000, 4.0, 40, 64),
    Shape("llama-3.1-70b", 16, "A100", 4, 2000, 500, 2.0, 80, 128),
    Shape("llama-3.1-70b", 16, "B200", 2, 4000, 1000, 2.0, 30, 64),
    Shape("llama-3.1-70b", 8, "H100", 2, 2000, 500, 2.0, 50, 96),
    Shape("qwen3-30b-a3b", 16, "H100", 1, 2000, 500, 1.0, 40, 64),
)
