"""The small files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from disagg_protocol.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} if there is no such file. Raises ModelError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path.name}: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.name}: must be an object")
    return content
