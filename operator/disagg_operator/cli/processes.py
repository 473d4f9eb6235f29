"""The processes of `disagg local`, which are started, watched and drained.

Only processes that were started here are ever signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from disagg_operator.desired.local_process import ProcessSpec
from disagg_wire.environment import WorkerVariable


@dataclass(slots=True)
class Running:
    """A process that was started."""

    spec: ProcessSpec
    port: int
    """The port on which it listens on the loopback interface."""
    process: asyncio.subprocess.Process
    log: Path
    """The file of its output."""
    draining: bool = False
    """Whether it was asked to finish its work and exit."""
    started_s: float = field(default_factory=time.monotonic)
    """The monotonic time in seconds at which it was started."""
    ready_after_s: float | None = None
    """The seconds from its start until it was ready; None: not ready yet."""

    @property
    def alive(self) -> bool:
        """Whether the process has not exited."""
        return self.process.returncode is None

    @property
    def url(self) -> str:
        """The base URL of the process."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def age_s(self) -> float:
        """The seconds since the process was started."""
        return time.monotonic() - self.started_s

    def seen(self) -> None:
        """Record that the process answered like a ready worker."""
        if self.ready_after_s is None:
            self.ready_after_s = self.age_s

    def terminate(self) -> None:
        """Ask the process to drain and exit."""
        self.draining = True
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def tail(self, lines: int = 5) -> str:
        """Return the last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def free_port() -> int:
    """Return a port of the loopback interface on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def start(spec: ProcessSpec, port: int, folder: Path) -> Running:
    """Start `python -m MODULE`.

    The process gets a process group of its own, so that Ctrl-C only reaches this process, which can
    then drain the others in order.
    """
    log = folder / f"{spec.name}.log"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": spec.environment.get(WorkerVariable.THREADS, "1"),
        **spec.environment,
    }
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            spec.module,
            env=environment,
            stdout=out,
            stderr=out,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    return Running(spec, port, process, log)


async def stop_all(running: list[Running], timeout_s: float) -> None:
    """Send SIGTERM to all processes, and SIGKILL to those that are alive after `timeout_s`."""
    for one in running:
        one.terminate()
    waits = [asyncio.create_task(one.process.wait()) for one in running if one.alive]
    if not waits:
        return
    await asyncio.wait(waits, timeout=timeout_s)
    for one in running:
        if one.alive:
            with contextlib.suppress(ProcessLookupError):
                one.process.kill()
    await asyncio.gather(*waits)
