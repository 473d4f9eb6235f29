"""Processes of `disagg local`: start, watch, drain.

Only processes started here are ever signalled.
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
    """A process that was started, and where it listens."""

    spec: ProcessSpec
    port: int
    process: asyncio.subprocess.Process
    log: Path
    draining: bool = False
    started_s: float = field(default_factory=time.monotonic)
    ready_after_s: float | None = None

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started_s

    def seen(self) -> None:
        """It answered with what a worker that is ready says."""
        if self.ready_after_s is None:
            self.ready_after_s = self.age_s

    def terminate(self) -> None:
        self.draining = True
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def tail(self, lines: int = 5) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def start(spec: ProcessSpec, port: int, folder: Path) -> Running:
    """`python -m MODULE` in a process group of its own, so that Ctrl-C reaches only us and we drain
    in order.
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
    """SIGTERM to all, SIGKILL to what is left after `timeout_s`."""
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
