"""Tests of a group of ranks, which must compute the same tokens as one process, through the same
scheduler, and with KV from groups of another size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.worker import checkpoints, oracle
from tests.worker.collector import Collector
from tests.worker.execution.conftest import Start
from tests.worker.in_process_kv import generate_remote
from tests.worker.oracle import MODEL

from disagg_protocol.errors import ModelError
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine

SAMPLING = SamplingParams(seed=3, max_new_tokens=16, temperature=0.0)
LENGTHS = (1, 15, 16, 17, 40, 100)


def _prompt(n: int) -> list[int]:
    return [(7 * i * i + 3 * i) % 96 + 1 for i in range(n)]


def _all(engine: TorchEngine, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        engine.generate(str(i), prompt, len(prompt), sampling, sink)
    return [s.finished() for s in sinks]


SHAPES: dict[str, dict[str, Any]] = {
    "grouped query heads, tied": {},
    "a vocabulary that does not divide, untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head norms": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8},
    "sliding window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_two_ranks_give_the_tokens_of_one_with(shape: str, tmp_path: Path, start: Start) -> None:
    folder = checkpoints.make(tmp_path, **SHAPES[shape])
    prompts = [_prompt(n) for n in LENGTHS]
    assert _all(start(folder, 2), prompts, SAMPLING) == _all(start(folder, 1), prompts, SAMPLING)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shipped_model_is_the_same_on(ranks: int, start: Start) -> None:
    """Compute prompts of 1 to 1,500 tokens at once, so that chunks and batches mix, greedily in
    float32.
    """
    prompts = oracle.prompts()[: 40 // ranks]
    assert _all(start(MODEL, ranks), prompts, oracle.SAMPLING) == _all(start(MODEL, 1), prompts, oracle.SAMPLING)


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), [(2, 2), (1, 2), (2, 1), (4, 2)])
def test_kv_moves_between_groups_of(ours: int, theirs: int, start: Start) -> None:
    """Move KV, which has all heads whichever rank computed them, so that groups of any two sizes
    understand each other.
    """
    prefill, decode, one = start(MODEL, ours, "prefill"), start(MODEL, theirs, "decode"), start(MODEL, 1)
    assert prefill.layout == decode.layout
    prompts = [p for p in oracle.prompts()[:12] if len(p) < 600]
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        generate_remote(prefill, decode, str(i), prompt, len(prompt), oracle.SAMPLING, sink)
    found = [s.finished() for s in sinks]
    assert decode.load().prompt_tokens_total == 0  # It computed no prompt itself.
    assert found == _all(one, prompts, oracle.SAMPLING)


def test_what_a_group_can_not_do_is_refused_by_name(tmp_path: Path, start: Start) -> None:
    folder = checkpoints.make(tmp_path)
    with pytest.raises(ModelError, match=r"parallelism 4 does not divide config\.json's num_key_value_heads 2"):
        start(folder, 4)
    with pytest.raises(ModelError, match="host_cache_bytes"):
        start(folder, 2, host_cache_bytes=1 << 20)
