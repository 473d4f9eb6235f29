"""The file in which a process of a container leaves a message for whoever looks after its end."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)

PATH = Path("/dev/termination-log")


def leave(message: str, path: Path | None = None) -> None:
    """Write a message, if the kubelet has made the file. Nothing depends on it."""
    file = path or PATH
    try:
        if file.is_file():
            file.write_text(message, encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error)
