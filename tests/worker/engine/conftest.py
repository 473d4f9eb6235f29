"""The fixture for engines with a small random checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.worker import checkpoints
from tests.worker.engine.engines import BLOCK_BYTES, Make

from disagg_wire.roles import Role
from disagg_worker.backend.interface import Backend
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    """Yield a function that builds engines, which are stopped at the end; no block may be missing
    then.
    """
    made: list[TorchEngine] = []

    def build(role: Role = "both", backend: Backend | None = None, **changes: Any) -> TorchEngine:
        settings = {
            "block_size_tokens": 4,
            "kv_cache_bytes": 256 * BLOCK_BYTES,
            "max_batch_tokens": 64,
            "prefill_wait_s": 0.0,
        } | changes
        made.append(TorchEngine(folder, EngineConfig("tiny", role, **settings), backend))
        return made[-1]

    yield build
    for engine in made:
        engine.stop(10)
        load = engine.load()
        assert (load.blocks_free, load.waiting_requests, load.running_requests) == (load.blocks_total, 0, 0)
