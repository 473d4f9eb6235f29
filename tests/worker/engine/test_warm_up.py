"""Tests of the warm-up: every size is computed once, and the cache is as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.worker import checkpoints
from tests.worker.collector import Collector
from tests.worker.engine.engines import BLOCK_BYTES, GREEDY, prompt

from disagg_worker.backend.plain import PlainBackend
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.warm_up import steps
from disagg_worker.execution.executor import LocalExecutor, Step


@pytest.mark.parametrize(("running", "largest"), [(1, 1), (3, 4), (4, 4), (100, 8)])
def test_every_size_that_may_be_asked_for_is_computed_largest_first(running: int, largest: int) -> None:
    made = list(steps(4, 100, 256, (1, 2, 4, 8), running, 64))
    decodes = [len(s.batch.token_ids) for s in made if s.batch.tables is not None]
    assert decodes == [n for n in (8, 4, 2, 1) if n <= largest]
    prefills = [len(s.batch.token_ids) for s in made if s.batch.tables is None]
    assert prefills == [1, 16, 64]  # Not more than a batch may hold.
    for step in made:
        assert {int(slot) // 4 for slot in step.batch.slots} <= set(step.clear)


def test_an_engine_that_warmed_up_serves_as_one_that_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.make(tmp_path)
    config = EngineConfig("m", "both", block_size_tokens=4, kv_cache_bytes=256 * BLOCK_BYTES, max_running=4)
    ran: list[Step] = []
    run = LocalExecutor.run

    def counted(executor: LocalExecutor, step: Step, *rest: object) -> torch.Tensor:
        ran.append(step)
        return run(executor, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalExecutor, "run", counted)
    found = []
    for sizes in ((), (1, 2, 4)):
        monkeypatch.setattr(PlainBackend, "decode_sizes", sizes)
        ran.clear()
        engine, sink = TorchEngine(folder, config, PlainBackend(torch.device("cpu"))), Collector()
        # The steps run before the constructor returns, so before the worker is ready.
        assert bool(ran) == bool(sizes)
        assert not engine._memory.tensor[1:].any()
        engine.generate("r", prompt(20), 20, GREEDY, sink)
        found.append(sink.finished())
        engine.stop(10)
    assert found[0] == found[1]
