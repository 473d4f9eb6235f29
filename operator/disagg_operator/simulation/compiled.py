"""The numba decorator of functions that call each other over several files.

Compiled code is kept. numba asks only whether the file of a function has changed, not those of the
functions that it calls: an edit of one file would leave its old code in the callers. So what is
kept lies in a folder named after all sources of the simulator.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numba

_PREFIX = "simulator-"


def sources_key(folder: Path) -> str:
    """Return a key that changes with any of the folder's Python files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder(sources: Path, chosen: str) -> Path:
    """Return the folder for compiled code.

    It is in the folder that the user chose for numba (NUMBA_CACHE_DIR), else beside the bytecode,
    where the folders of other versions of the sources are removed.
    """
    name = f"{_PREFIX}{sources_key(sources)}"
    if chosen:
        return Path(chosen) / name
    found = sources / "__pycache__" / name
    for old in found.parent.glob(f"{_PREFIX}*"):
        if old != found:
            shutil.rmtree(old, ignore_errors=True)
    return found


# Where this can't be written to, numba goes on to a folder of its own choice.
numba.config.CACHE_DIR = str(cache_folder(Path(__file__).parent, numba.config.CACHE_DIR))
njit: Any = numba.njit(cache=True, fastmath=False)


def exists() -> bool:
    """Return whether the simulator was compiled before, so that it starts within seconds."""
    return any(Path(numba.config.CACHE_DIR).rglob("*.nbc"))
