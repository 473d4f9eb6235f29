"""The search for compiled CPU kernels, and their compilation by g++ if there are none.

Compiled kernels are looked for in the folder DISAGG_KERNELS (images contain one), then in the
user's cache.

python -m disagg_worker.backend.cpu.build --out FOLDER     compile every level ahead of time
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).parent / "src"
# The x86-64 levels, best first, and the CPU flags that each needs. All are compiled from one
# source: AVX-512 has wider vectors, and AVX512_BF16 multiplies pairs of bfloat16.
_V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma"}
LEVELS = {
    "x86-64-v4-bf16": _V4 | {"avx512_bf16"},
    "x86-64-v4": _V4,
    "x86-64-v3": {"avx2", "fma", "bmi2"},
}
_FLAGS = {
    "x86-64-v4-bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "x86-64-v3": ("-march=x86-64-v3",),
}
_COMPILE_TIMEOUT_S = 300.0


class KernelsUnavailable(Exception):
    """Raised when there are no kernels for this machine; the message says why."""


def supported_levels(cpuinfo: str) -> list[str]:
    """Return the levels that a CPU with this /proc/cpuinfo can run, best first."""
    flags = next(
        (set(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("flags")), set()
    )
    return [level for level, needed in LEVELS.items() if needed <= flags]


def _sources() -> list[Path]:
    return sorted(_SOURCE.glob("*.[ch]pp"))


def file_name(level: str) -> str:
    """Return the file name of a level, which contains a hash of the sources, so that every version
    of them has a file of its own.
    """
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in _sources())).hexdigest()[:16]
    return f"kernels-{level}-{digest}.so"


def compile_level(level: str, folder: Path) -> Path:
    """Compile a level into `folder`, unless it is there already, and return the file.

    Processes that start together compile it once. Raises KernelsUnavailable.
    """
    target = folder / file_name(level)
    if target.exists():
        return target
    compiler = shutil.which("g++")
    if compiler is None:
        raise KernelsUnavailable("there is no g++ to compile the CPU kernels with, and DISAGG_KERNELS holds none")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            made = folder / f"{target.name}.{os.getpid()}"
            command = [
                compiler,
                "-O3",
                "-std=c++17",
                *_FLAGS[level],
                "-ffp-contract=fast",
                "-fPIC",
                "-shared",
                "-pthread",
                str(_SOURCE / "kernels.cpp"),
                "-o",
                str(made),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
            if done.returncode:
                raise KernelsUnavailable(f"compiling the CPU kernels failed: {done.stderr[-2000:]}")
            made.replace(target)
    return target


def find(environment: Mapping[str, str], cpuinfo: str) -> Path:
    """Return the best kernels for this CPU, compiled now if necessary.

    Raises KernelsUnavailable.
    """
    levels = supported_levels(cpuinfo)
    if not levels:
        raise KernelsUnavailable("the CPU has no AVX2")
    if ahead := environment.get("DISAGG_KERNELS"):
        for level in levels:
            if (path := Path(ahead) / file_name(level)).exists():
                return path
    base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return compile_level(levels[0], base / "disagg" / "kernels")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the CPU kernels of every level.")
    parser.add_argument("--out", type=Path, required=True, help="folder; set DISAGG_KERNELS to it")
    folder: Path = parser.parse_args().out
    for level in LEVELS:
        print(compile_level(level, folder))


if __name__ == "__main__":
    main()
