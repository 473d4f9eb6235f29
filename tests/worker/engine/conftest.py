"""Engines over a small random checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.worker.checkpoints import write_checkpoint

from disagg_worker.engine.config import EngineConfig
from disagg_worker.engine.core import TorchEngine

MakeEngine = Callable[..., TorchEngine]
CONFIG = EngineConfig(
    name="tiny", role="both", block_size_tokens=4, kv_cache_bytes=400 << 10, max_running=16, max_waiting=64, prefill_wait_s=0.0
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_engine(checkpoint: Path) -> Iterator[MakeEngine]:
    """make_engine(**changes of CONFIG); each is stopped at the end, its loop must still be alive then, and no block may be lost."""
    made: list[TorchEngine] = []

    def make(**changes: Any) -> TorchEngine:
        made.append(TorchEngine(checkpoint, replace(CONFIG, **changes)))
        return made[-1]

    yield make
    for engine in made:
        engine.stop(10.0)
        assert not engine.alive()
        load = engine.load()
        assert load.blocks_free + load.blocks_used + load.blocks_leased == load.blocks_total


@pytest.fixture
def engine(make_engine: MakeEngine) -> TorchEngine:
    return make_engine()
