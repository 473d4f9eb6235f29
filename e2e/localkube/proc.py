"""Background processes, identified by pid and start time.

A reused pid is therefore never mistaken for one of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localkube.settings import ProcessDied, Settings
from localkube.shell import clean_env, tail

LOG_LIMIT_BYTES = 64 * 1024 * 1024


def start_ticks(pid: int) -> int | None:
    """Return the time at which the process began, in clock ticks since boot.

    It is None if the process is gone or only waits to be reaped.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name of the command may contain spaces and brackets, but the fields after the last bracket
    # do not.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


@dataclass(frozen=True)
class Daemon:
    """One background process of the cluster."""

    name: str
    argv: tuple[str, ...]
    settings: Settings

    @property
    def pid_file(self) -> Path:
        return self.settings.pids / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.settings.logs / f"{self.name}.log"

    def pid(self) -> int | None:
        return recorded_pid(self.pid_file)

    def is_current(self) -> bool:
        """Return whether it runs, and with the arguments that it would be given now."""
        if self.pid() is None:
            return False
        recorded = json.loads(self.pid_file.read_text())
        return bool(recorded.get("argv") == list(self.argv))

    def start(self, env: Mapping[str, str] | None = None) -> bool:
        """Start the process unless it runs as wanted, and return whether it was started."""
        if self.is_current():
            return False
        stop_recorded(self.pid_file)
        if self.log.is_file() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env=clean_env(env), cwd="/",
            )  # fmt: skip
        ticks = start_ticks(process.pid)
        if ticks is None:
            raise ProcessDied(f"{self.name} ended at once; {self.log}:\n{tail(self.log)}")
        write_atomically(self.pid_file, json.dumps({"pid": process.pid, "start_ticks": ticks, "argv": list(self.argv)}))
        return True

    def must_live(self) -> None:
        if self.pid() is None:
            raise ProcessDied(f"{self.name} died; {self.log}:\n{tail(self.log)}")


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.chmod(mode)
    part.replace(path)


def recorded_pid(pid_file: Path) -> int | None:
    """Return the pid in the file if the process that it was written for still runs."""
    try:
        recorded = json.loads(pid_file.read_text())
        pid, ticks = int(recorded["pid"]), int(recorded["start_ticks"])
    except (OSError, ValueError, KeyError):
        return None
    return pid if start_ticks(pid) == ticks else None


def stop_recorded(pid_file: Path, *, grace_s: float = 10) -> bool:
    """End the recorded process, by force after the grace period, and return whether there was
    one.
    """
    pid = recorded_pid(pid_file)
    if pid is not None:
        stop_pid(pid, grace_s=grace_s)
    with contextlib.suppress(FileNotFoundError):
        pid_file.unlink()
    return pid is not None


def stop_pid(pid: int, *, grace_s: float) -> None:
    ticks = start_ticks(pid)
    if ticks is None:
        return
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if start_ticks(pid) != ticks:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline_s = time.monotonic() + patience_s
        while start_ticks(pid) == ticks and time.monotonic() < deadline_s:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)
