"""Tests of two GPUs as one worker, over NCCL."""

from __future__ import annotations

from tests.worker import oracle
from tests.worker.collector import Collector
from tests.worker.oracle import MODEL

from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig


def test_two_gpus_give_the_tokens_of_one() -> None:
    prompts = oracle.prompts()[:30]
    found = []
    for ranks in (1, 2):
        config = EngineConfig(
            "m", "both", dtype="float32", device="cuda", tensor_parallel=ranks, kv_cache_bytes=256 << 20
        )
        engine, sinks = TorchEngine(MODEL, config), [Collector() for _ in prompts]
        for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
            engine.generate(str(i), prompt, len(prompt), oracle.SAMPLING, sink)
        found.append([s.finished() for s in sinks])
        engine.stop(10)
    assert found[0] == found[1]
