"""The folder with NIXL."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def nixl() -> Path:
    """Return the folder in which NIXL is installed; the first call downloads it."""
    done = subprocess.run([REPO / "scripts/nixl"], check=True, capture_output=True, text=True, timeout=240)
    return Path(done.stdout.strip())
