"""A worker whose engine hangs in the middle of a step while the file HANGS/<pod> is there.

With the content "gil", the step holds the interpreter lock meanwhile, as an extension in C may.
Each step takes 10 ms at least, so that streams are still there when something happens to it.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from disagg_worker.engine.steps import Steps
from disagg_worker.main import main

_GIL_US = 8_000_000
_LEAST_S = 0.01


def _hang(flag: Path) -> None:
    while flag.exists():
        if flag.read_text() == "gil":
            ctypes.PyDLL(None).usleep(_GIL_US)
        time.sleep(0.01)


def _hanging(compute: Any, flag: Path) -> Any:
    def step(self: Steps, batch: Any) -> Any:
        _hang(flag)
        time.sleep(_LEAST_S)
        return compute(self, batch)

    return step


if __name__ == "__main__":
    flag = Path(os.environ["HANGS"]) / os.environ["DISAGG_POD_NAME"]
    Steps.prefill = _hanging(Steps.prefill, flag)  # type: ignore[method-assign]
    Steps.decode = _hanging(Steps.decode, flag)  # type: ignore[method-assign]
    main()
