"""Two workers on two processors that may be threads of one core: each computes as fast as ever,
whatever the other does.

A virtual machine's processors often share a core, and always the memory's bandwidth: two that
compute slow each other down as no two GPUs do. So the prefill worker has a processor to itself, all
the rest the other one, and on both an idle-class process does, whenever nothing else runs, what the
worker there does to memory and caches: a neighbour is always busy, and speeds are constant (and
lower). Where the kernel shares out time by session first (autogroup), the idle class counts only
within its own: so its session is made the least, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# As many bytes of weights as the model has, times a prefill batch or a few sequences.
_SPIN = """
import os, sys, torch
parent = os.getppid()
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
torch.set_num_threads(1)
weights = [torch.randn(2048, 768).bfloat16() for _ in range(48)]
rows = torch.randn(int(sys.argv[2]), 768).bfloat16()
while os.getppid() == parent:
    for w in weights:
        torch.nn.functional.linear(rows, w)
"""
_PREFILL_ROWS, _DECODE_ROWS = 192, 4


def _least(pid: int) -> None:
    """The process's session gets next to nothing while others want the processor."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("19")


@contextmanager
def busy_neighbours() -> Iterator[tuple[int, int] | None]:
    """Spinners on two processors, and this process (with all that it starts) on the second.

    None: there are no two.
    """
    both = sorted(os.sched_getaffinity(0))[:2]
    if len(both) < 2:
        yield None
        return
    spinners = []
    for cpu, rows in zip(both, (_PREFILL_ROWS, _DECODE_ROWS), strict=True):
        spinners.append(subprocess.Popen([sys.executable, "-c", _SPIN, str(cpu), str(rows)], start_new_session=True))
        _least(spinners[-1].pid)
    os.sched_setaffinity(0, {both[1]})
    try:
        yield both[0], both[1]
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def pin_prefill(parent: int, cpu: int) -> None:
    """Move the prefill worker, a child of `parent`, to a processor of its own.

    Raises RuntimeError when there is none.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            if b"DISAGG_ROLE=prefill" in (folder / "environ").read_bytes().split(b"\0"):
                for thread in (folder / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), {cpu})
                return
    raise RuntimeError("no prefill worker to pin")
