"""The file in which a process of a container leaves a message for whoever looks after its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

PATH = Path("/dev/termination-log")
_INTERVAL_S = 0.5


def leave(message: str, path: Path | None = None) -> None:
    """Write a message, if the kubelet has made the file. Nothing depends on it."""
    file = path or PATH
    try:
        if file.is_file():
            file.write_text(message, encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error)


async def keep(message: Callable[[], str], path: Path | None = None, interval_s: float = _INTERVAL_S) -> None:
    """Leave a message, and again whenever it is another one, until cancelled.

    What stands there is also known of a process that is killed.
    """
    left = ""
    while True:
        if (found := message()) != left:
            left = found
            leave(found, path)
        await asyncio.sleep(interval_s)
