"""The small files of a model folder: configuration, tokenizer, chat template."""

from __future__ import annotations

import hashlib
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


def source_revision(folder: Path) -> str:
    """Return the commit of a model in a cache of the Hugging Face hub, "" for other folders.

    The cache has the files of a commit in `models--ORG--NAME/snapshots/COMMIT`.
    """
    snapshots = folder.parent
    return folder.name if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--") else ""


def tokenizer_files(folder: Path) -> dict[str, Any]:
    """Return the data with which the router turns text into tokens and back (docs/protocol.md).

    Raises ModelError.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no tokenizer.json")
    tokenizer, config = path.read_text(encoding="utf-8"), read_json(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    digest = hashlib.sha256(json.dumps([tokenizer, config, chat], sort_keys=True).encode()).hexdigest()
    return {"digest": digest, "tokenizer_json": tokenizer, "tokenizer_config": config, "chat_template": chat}
