"""Tests of the engine on a GPU: it generates the same tokens as on the CPU in float32, also after a
KV transfer in either direction and with KV from the host tier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.worker import oracle
from tests.worker.collector import Collector
from tests.worker.in_process_kv import generate_remote
from tests.worker.oracle import MODEL

from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig

Start = Callable[..., TorchEngine]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[TorchEngine] = []

    def build(device: str, role: Any = "both", **changes: Any) -> TorchEngine:
        made.append(
            TorchEngine(
                MODEL,
                EngineConfig("m", role, dtype="float32", device=device, **{"kv_cache_bytes": 256 << 20, **changes}),
            )
        )
        return made[-1]

    yield build
    for engine in made:
        engine.stop(10)


def _local(engine: TorchEngine, prompts: list[list[int]]) -> list[list[int]]:
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        engine.generate(str(i), prompt, len(prompt), oracle.SAMPLING, sink)
    return [s.finished() for s in sinks]


@pytest.mark.parametrize(("ours", "theirs"), [("cuda", "cuda"), ("cuda", "plain"), ("plain", "cuda")])
def test_the_tokens_are_those_of_the_cpu(start: Start, ours: str, theirs: str) -> None:
    prompts = oracle.prompts()[:40]
    expected = _local(start("plain"), prompts)
    prefill, decode = start(ours, "prefill"), start(theirs, "decode")
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        generate_remote(prefill, decode, str(i), prompt, len(prompt), oracle.SAMPLING, sink)
    assert [s.finished() for s in sinks] == expected


def test_blocks_come_back_from_host_memory(start: Start) -> None:
    """Use a pool with room for one long prompt: the second prompt evicts the first, whose KV is
    then found in the host tier.
    """
    first, second = ([(i * k) % 2000 + 1 for i in range(1500)] for k in (7, 11))
    expected = _local(start("plain"), [first])
    size_bytes = 2048 * 2 * 6 * 4 * 32 * 4
    engine = start("cuda", kv_cache_bytes=size_bytes, host_cache_bytes=1 << 30)
    assert _local(engine, [first]) == expected
    _local(engine, [second])
    before = engine.load().cached_tokens_total
    assert _local(engine, [first]) == expected
    assert engine.load().cached_tokens_total - before > 1000
