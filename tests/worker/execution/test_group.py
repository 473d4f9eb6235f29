"""Tests of a group of ranks, which must compute the same tokens as one process, through the same
scheduler, and with KV from groups of another size.
"""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
from tests.worker import checkpoints, oracle
from tests.worker.collector import Collector
from tests.worker.execution.conftest import Start
from tests.worker.in_process_kv import ThreadedKvSender, generate_remote
from tests.worker.oracle import MODEL

from disagg_protocol.errors import EngineError, ModelError
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine
from disagg_worker.execution.group_memory import GroupMemory

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


def _moved(prefill: TorchEngine, decode: TorchEngine, prompts: list[list[int]], sampling: Any) -> list[list[int]]:
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        generate_remote(prefill, decode, str(i), prompt, len(prompt), sampling, sink, ThreadedKvSender)
    return [s.finished() for s in sinks]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "host_region"), [(2, 2, False), (1, 2, False), (2, 1, False), (4, 2, False), (2, 2, True)]
)
def test_kv_moves_between_groups_of(ours: int, theirs: int, host_region: bool, start: Start) -> None:
    """Move KV, which has all heads whichever rank computed them, so that groups of any two sizes
    understand each other.
    """
    prefill = start(MODEL, ours, "prefill", host_region=host_region)
    decode, one = start(MODEL, theirs, "decode", host_region=host_region), start(MODEL, 1)
    assert prefill.layout == decode.layout
    prompts = [p for p in oracle.prompts()[:12] if len(p) < 600]
    found = _moved(prefill, decode, prompts, oracle.SAMPLING)
    assert decode.load().prompt_tokens_total == 0  # It computed no prompt itself.
    assert found == _all(one, prompts, oracle.SAMPLING)


def _shared_bytes(engine: TorchEngine) -> int:
    memory = engine.cache
    assert isinstance(memory, GroupMemory)
    return memory.buffers.held_bytes


@pytest.mark.slow
def test_the_memory_that_ranks_share_does_not_grow_with_what_is_moved(tmp_path: Path, start: Start) -> None:
    """A copy of all blocks in host memory would grow up to the size of the cache."""
    folder = checkpoints.make(tmp_path)
    prefill, decode = start(folder, 2, "prefill"), start(folder, 2, "decode")
    assert (prefill.cache.region, decode.cache.region) == (None, None)
    prompts = [_prompt(n) for n in LENGTHS]
    largest = -(-max(LENGTHS) // decode.layout.block_size_tokens) * decode.layout.layer_block_bytes
    most = 2 * (largest + (1 << 12))  # Two buffers of two transfers at a time, in pages.
    found = [_moved(prefill, decode, [prompt], SAMPLING)[0] for prompt in prompts * 2]
    assert 0 < _shared_bytes(prefill) <= most
    assert 0 < _shared_bytes(decode) <= most
    assert found == _all(start(folder, 1), prompts, SAMPLING) * 2


@pytest.mark.slow
def test_what_arrives_takes_no_time_of_a_step(tmp_path: Path, start: Start) -> None:
    """Streams go on between the frames of what arrives, and with the first part of it in place."""
    decode = start(checkpoints.make(tmp_path), 2)
    (wanted,) = _all(decode, [_prompt(40)], SAMPLING)
    reservation = decode.reserve("r", 100, 120)
    for layer in range(decode.layout.layers):
        with reservation.blocks(0, 3).writing(layer) as views:
            for view in views:
                view[:] = bytes(len(view))
            assert _all(decode, [_prompt(40)], SAMPLING) == [wanted]
    reservation.release()
    assert decode.load().blocks_leased == 0


@pytest.mark.slow
def test_a_rank_that_cannot_copy_ends_the_group_and_the_transfer(tmp_path: Path, start: Start) -> None:
    lost: queue.Queue[str] = queue.Queue()
    decode = start(checkpoints.make(tmp_path), 2, on_lost=lost.put)
    cache = decode.cache
    assert isinstance(cache, GroupMemory)
    with pytest.raises(EngineError, match="rank 1 of 2"), cache.writing(99, [0]):
        pass
    assert "rank 1 of 2" in lost.get(timeout=60)


def test_what_a_group_can_not_do_is_refused_by_name(tmp_path: Path, start: Start) -> None:
    folder = checkpoints.make(tmp_path)
    with pytest.raises(ModelError, match=r"parallelism 4 does not divide config\.json's num_key_value_heads 2"):
        start(folder, 4)
    with pytest.raises(ModelError, match="host_cache_bytes"):
        start(folder, 2, host_cache_bytes=1 << 20)
