"""The fixture for engines of several ranks, which are stopped at the end of a test in any case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from disagg_wire.roles import Role
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig

Start = Callable[..., TorchEngine]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[TorchEngine] = []

    def build(
        folder: Path, ranks: int, role: Role = "both", on_lost: Callable[[str], None] = lambda _: None, **changes: Any
    ) -> TorchEngine:
        config = EngineConfig("m", role, dtype="float32", tensor_parallel=ranks, prefill_wait_s=0.0, **changes)
        made.append(TorchEngine(folder, config, on_lost=on_lost))
        return made[-1]

    yield build
    for engine in made:
        engine.stop(10)
