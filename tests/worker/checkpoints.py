"""The small checkpoint that the engine tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.worker import random_models


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    """64 tokens of vocabulary, 3 layers; `changes` go into config.json."""
    return random_models.make(folder, **{"vocab_size": 64, "num_hidden_layers": 3, **changes})
