"""A worker whose engine hangs in the middle of a step while the file HANGS/<pod> is there.

The file HANGS/next is taken, and renamed to that, by the first worker that has run 20 decode steps
since it is there. With the content "gil", the step holds the interpreter lock meanwhile, as an
extension in C may; with "stop", the process stops itself (SIGSTOP). Each step takes 10 ms at least.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disagg_worker.engine.steps import Steps
from disagg_worker.main import main

_GIL_US = 8_000_000
_LEAST_S = 0.01
_STEPS = 20


class _Hang:
    """The file that makes this worker hang."""

    def __init__(self, folder: Path, pod: str) -> None:
        self._next, self._mine = folder / "next", folder / pod
        self._seen = 0

    def may_begin(self, batch: Any) -> None:
        """Count a decode step of streams, and take the file that is there for all if it is time."""
        if any(s.request_id.startswith("handshake") for s in batch):
            return
        self._seen = self._seen + 1 if self._next.exists() else 0
        if self._seen > _STEPS:
            with contextlib.suppress(FileNotFoundError):  # Another one was the first.
                self._next.rename(self._mine)

    def hang(self, _batch: Any) -> None:
        """Return when this worker's file is not there."""
        while self._mine.exists():
            with contextlib.suppress(FileNotFoundError):
                how = self._mine.read_text()
                if how == "gil":
                    ctypes.PyDLL(None).usleep(_GIL_US)
                elif how == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.01)


def _hanging(compute: Any, *before: Callable[[Any], None]) -> Any:
    def step(self: Steps, batch: Any) -> Any:
        for call in before:
            call(batch)
        time.sleep(_LEAST_S)
        return compute(self, batch)

    return step


if __name__ == "__main__":
    hang = _Hang(Path(os.environ["HANGS"]), os.environ["DISAGG_POD_NAME"])
    Steps.prefill = _hanging(Steps.prefill, hang.hang)  # type: ignore[method-assign]
    Steps.decode = _hanging(Steps.decode, hang.may_begin, hang.hang)  # type: ignore[method-assign]
    main()
