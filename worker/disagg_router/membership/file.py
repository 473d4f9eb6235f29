"""The list of workers from a JSON file, which is read again when it changes.

Its content is `{"workers": [{"name": "...", "url": "http://...", "pool": "decode"}]}`, where `pool`
may be left out. `"canary"` may say the part of the requests that a revision of the pool gets
(disagg_wire.canary).
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from disagg_router.workers.worker_info import Member

log = logging.getLogger(__name__)
_POLL_S = 0.2


def _member(listed: dict[str, Any]) -> Member:
    return Member(
        str(listed["name"]),
        str(listed["url"]),
        frozenset([str(listed["pool"])] if listed.get("pool") else []),
        ready=listed.get("ready") is not False,
        canary=str(listed.get("canary") or ""),
    )


class FileMembership:
    """The workers that a file lists. The last good content is kept while the file is missing or
    garbled.
    """

    deserted = False
    """A file that is gone says nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._members: dict[str, Member] = {}
        self.synced = False

    def members(self) -> dict[str, Member]:
        return self._members

    def leaving(self) -> dict[str, Member]:
        """Return nothing: who leaves the file is not known any more."""
        return {}

    def read(self) -> None:
        """Look at the file once, and read it if it has changed."""
        try:
            stat = self._path.stat()
            if (version := (stat.st_mtime_ns, stat.st_ino)) == self._seen:
                return
            listed = json.loads(self._path.read_text(encoding="utf-8"))["workers"]
            self._members = {m.name: m for m in map(_member, listed)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("membership file %s: %s", self._path, error)
            return
        self._seen, self.synced = version, True

    async def run(self) -> None:
        while True:
            self.read()
            await asyncio.sleep(_POLL_S)
