"""The decision log: every step of every policy, as JSON lines on the operator's disk.

`disagg explain` and `disagg replay` read it. A file begins with a line `{"begin": ...}`, which
holds the settings and the state before the first step, so that the steps can be repeated. Each
resource has two files of bounded size (when the newer is full, it replaces the older), and all
files together are bounded as well.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disagg_operator.autoscaling.policy.guard import Outcome
from disagg_operator.autoscaling.records import decision_records
from disagg_operator.vocabulary import Key

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_TOTAL_BYTES = 256 * 1024 * 1024


class DecisionLog:
    """The files NAMESPACE_NAME.jsonl and NAMESPACE_NAME.old.jsonl in `folder`.

    Kubernetes names contain no underscore.
    """

    def __init__(
        self, folder: Path, max_file_bytes: int = MAX_FILE_BYTES, max_total_bytes: int = MAX_TOTAL_BYTES
    ) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._max_total_bytes = max_total_bytes
        self._begun: dict[Key, object] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def record(self, key: Key, outcome: Outcome, *, dry_run: bool) -> None:
        """Append one step of a policy, after a beginning if one is needed.

        The rules change with the resource, and with the size of a pool that is not scaled.
        """
        rules = outcome.settings if outcome.queue is None else (outcome.queue.pools, outcome.settings)
        if self.must_begin(key, rules):
            self.write(key, decision_records.beginning(outcome), begins=rules)
        self.write(key, decision_records.step_line(outcome, dry_run=dry_run))

    def must_begin(self, key: Key, settings: object) -> bool:
        """Return whether the next line must be a beginning.

        It must be the first line of this process and of a file, and the first after a change of
        settings.
        """
        return key not in self._begun or self._begun[key] != settings or not self._path(key).exists()

    def write(self, key: Key, record: dict[str, Any], *, begins: object = None) -> None:
        """Append a line.

        `begins` holds the settings if the line is a beginning. A full disk is logged, and only
        records are lost.
        """
        path = self._path(key)
        try:
            with path.open("a", encoding="utf-8") as out:
                if begins is not None and _ends_half(path):  # an earlier write was interrupted, or the disk was full
                    out.write("\n")
                out.write(json.dumps(record, separators=(",", ":")) + "\n")
                size = out.tell()
            if begins is not None:
                self._begun[key] = begins
            if size > self._max_file_bytes:
                path.replace(self._old(key))
                self._begun.pop(key, None)
                self._drop_oldest()
        except OSError as error:
            self._begun.pop(key, None)  # half a line may have been written: the next line must be a beginning
            log.warning("%s/%s: a decision was not recorded: %s", *key, error)

    def read(self, key: Key, since_s: float = 0.0) -> Iterator[bytes]:
        """Yield the lines from the last beginning at or before `since_s` on, oldest first."""
        lines: list[bytes] = []
        for path in (self._old(key), self._path(key)):
            if path.exists():
                lines += path.read_bytes().splitlines(keepends=True)
        start = 0
        for i, line in enumerate(lines):
            if line.startswith(b'{"begin"'):
                if _time_of(line) > since_s:
                    break
                start = i
        yield from lines[start:]

    def begin_anew(self) -> None:
        """Let the next line of each resource be a beginning, because the policies start anew."""
        self._begun.clear()

    def forget(self, key: Key) -> None:
        """Delete the records of a resource that has been deleted."""
        self._begun.pop(key, None)
        for path in (self._path(key), self._old(key)):
            path.unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        return self._folder / f"{key[0]}_{key[1]}.jsonl"

    def _old(self, key: Key) -> Path:
        return self._folder / f"{key[0]}_{key[1]}.old.jsonl"

    def _drop_oldest(self) -> None:
        files = sorted(self._folder.glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in files)
        for path in files:
            if total <= self._max_total_bytes:
                return
            total -= path.stat().st_size
            path.unlink()


def _ends_half(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _time_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["t"])
    except (ValueError, KeyError, TypeError):
        return 0.0
