"""Two workers on two processors that may be threads of one core.

Each computes at a constant speed, whatever the other does.

The processors of a virtual machine often share a core, and always the bandwidth of the memory: two
that compute slow each other down as no two GPUs do. So the prefill worker has a processor to
itself, and everything else runs on the other one. On both processors, an idle-class process does
the same to memory and caches as the worker there whenever nothing else runs. A neighbour is thus
always busy, and speeds are constant (and lower). Where the kernel first shares out time by session
(autogroup), the idle class counts only within its own session; so its session gets the lowest
priority, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The weights have as many bytes as those of the model, and the rows are those of a prefill batch or
# of a few sequences.
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
    """Give the session of the process next to no time while others need the processor."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("19")


@contextmanager
def busy_neighbours() -> Iterator[tuple[int, int] | None]:
    """Run spinners on two processors, and this process and its children on the second one.

    Yields the two processors, or None if there are not two.
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


def move(pid: int, cpu: int) -> None:
    """Move all threads of a process to one processor."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread may end at any time
            os.sched_setaffinity(int(thread.name), {cpu})


def pin_prefill(parent: int, cpu: int) -> None:
    """Move the prefill worker, a child of `parent`, to a processor of its own.

    Raises RuntimeError if there is no such worker.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            if b"DISAGG_ROLE=prefill" in (folder / "environ").read_bytes().split(b"\0"):
                move(int(folder.name), cpu)
                return
    raise RuntimeError("no prefill worker to pin")
