"""The small files of a model folder: configuration, tokenizer, chat template."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from disagg_protocol.errors import ModelError

# The largest files that are read; those of the models in use have a tenth of it at most.
_MOST_BYTES = 16 << 20
_MOST_TOKENIZER_BYTES = 256 << 20
_MOST_TEMPLATE_BYTES = 1 << 20


def _read_text(path: Path, most_bytes: int) -> str:
    """Return the text in a file. Raises ModelError, also for a file that is too large."""
    try:
        if (size := path.stat().st_size) > most_bytes:
            raise ModelError(f"{path.name}: {size} bytes, at most {most_bytes} are read")
        return path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise ModelError(f"{path.name}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} if there is no such file. Raises ModelError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(_read_text(path, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
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
    tokenizer = _read_text(path, _MOST_TOKENIZER_BYTES)
    config = read_json(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    chat = _read_text(template, _MOST_TEMPLATE_BYTES) if template.is_file() else config.get("chat_template")
    digest = hashlib.sha256(json.dumps([tokenizer, config, chat], sort_keys=True).encode()).hexdigest()
    return {"digest": digest, "tokenizer_json": tokenizer, "tokenizer_config": config, "chat_template": chat}
