"""The fixture for the tiny model that the workers of these tests load."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.protocol.client import KEY
from tests.worker import checkpoints


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose context is long enough for a request to run as long as a test needs."""
    folder = checkpoints.make(tmp_path_factory.mktemp("tiny"), max_position_embeddings=65536)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "key").write_bytes(KEY)
    return folder
