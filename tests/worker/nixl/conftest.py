"""The folder with NIXL, and the tiny model of the workers that use it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.worker import checkpoints
from tests.worker.server.rig import KEY

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def nixl() -> Path:
    """Return the folder in which NIXL is installed; the first call downloads it."""
    done = subprocess.run([REPO / "scripts/nixl"], check=True, capture_output=True, text=True, timeout=240)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.make(tmp_path_factory.mktemp("tiny"), max_position_embeddings=65536)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "key").write_bytes(KEY)
    return folder
