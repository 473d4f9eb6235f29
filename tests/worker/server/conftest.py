"""A tiny model on disk, as every worker of these tests loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.worker import checkpoints
from tests.worker.server.rig import KEY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough a context that a request can run for as long as a test wants it to."""
    folder = checkpoints.make(tmp_path_factory.mktemp("tiny"), max_position_embeddings=65536)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "key").write_bytes(KEY)
    return folder
