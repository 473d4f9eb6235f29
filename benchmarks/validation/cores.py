"""Two workers on two processors that may be threads of one core: each computes as fast as ever, whatever the other does.

A virtual machine's processors often share a core: two that compute take almost twice as long as one alone. A prefill and a decode worker
would slow each other down as no two GPUs do. So the prefill worker has a processor to itself, all the rest the other one, and on both an
idle-class process computes whenever nothing else does: a neighbour is always busy, and speeds are constant (and lower). Where the kernel
shares out time by session first (autogroup), the idle class counts only within its own: so its session is made the least, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SPIN = """
import os, sys, torch
parent = os.getppid()
try:
    with open("/proc/self/autogroup", "w") as group:
        group.write("19")
except OSError:
    pass
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
torch.set_num_threads(1)
a = torch.randn(384, 384)
while os.getppid() == parent:
    for _ in range(50):
        a @ a
"""


@contextmanager
def busy_neighbours() -> Iterator[tuple[int, int] | None]:
    """Spinners on two processors, and this process (with all that it starts) on the second. None: there are no two."""
    both = sorted(os.sched_getaffinity(0))[:2]
    if len(both) < 2:
        yield None
        return
    spinners = [subprocess.Popen([sys.executable, "-c", _SPIN, str(cpu)], start_new_session=True) for cpu in both]
    os.sched_setaffinity(0, {both[1]})
    try:
        yield both[0], both[1]
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def pin_prefill(parent: int, cpu: int) -> None:
    """Move the prefill worker, a child of `parent`, to a processor of its own. Raises RuntimeError when there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            if b"DISAGG_ROLE=prefill" in (folder / "environ").read_bytes().split(b"\0"):
                for thread in (folder / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), {cpu})
                return
    raise RuntimeError("no prefill worker to pin")
