"""Commands, waiting with a deadline, progress messages, and one lock for the whole tool."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from localkube.settings import ClusterError, ProcessDied

_STARTED_S = time.monotonic()


def say(text: str) -> None:
    """Print one progress line to stderr, because stdout is for answers such as those of `env`."""
    print(f"e2e {time.monotonic() - _STARTED_S:6.1f} s  {text}", file=sys.stderr, flush=True)


def tail(path: Path, lines: int = 15) -> str:
    """Return the end of a log, for the text of an error."""
    if not path.is_file():
        return f"({path} does not exist)"
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 16_384))
        text = log.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without proxies.

    Every address that the parts of the cluster communicate with is on this machine.
    """
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env.update(extra or {})
    return env


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = 60,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and capture its output; an error shows the end of the output."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False,
            env=dict(env) if env is not None else None, cwd=cwd,
        )  # fmt: skip
    except FileNotFoundError:
        raise ClusterError(f"`{words[0]}` is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(words[:6])}` did not end in {timeout_s:.0f} s") from None
    if check and done.returncode != 0:
        output = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise ClusterError(f"`{' '.join(words[:8])}` failed ({done.returncode}):\n{output}")
    return done


def run_logged(
    argv: Sequence[str | Path],
    log: Path,
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Run a long command with its output in a log.

    `poll` is called every second to report progress.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + timeout_s
    words = [str(word) for word in argv]
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd,
            env=dict(env) if env is not None else None,
        )  # fmt: skip
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                    break
                poll()
                if time.monotonic() > deadline_s:
                    raise ClusterError(f"`{' '.join(words[:3])}` did not end in {timeout_s:.0f} s; {log}:\n{tail(log)}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    if process.returncode != 0:
        raise ClusterError(f"`{' '.join(words[:3])}` failed ({process.returncode}); {log}:\n{tail(log, 30)}")


def wait_for(what: str, probe: Callable[[], bool], *, timeout_s: float, log: Path | None = None) -> None:
    """Ask the probe until it returns True. Raises ClusterError after `timeout_s`.

    A probe that raises ClusterError counts as False, and its text is kept for the error.
    """
    deadline_s = time.monotonic() + timeout_s
    reason = ""
    while True:
        try:
            if probe():
                return
        except ProcessDied:
            raise
        except ClusterError as error:
            reason = f"\nlast answer: {error}"
        if time.monotonic() > deadline_s:
            shown = f"\n{log}:\n{tail(log)}" if log else ""
            raise ClusterError(f"waited {timeout_s:.0f} s for {what}{reason}{shown}")
        time.sleep(0.1)


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock of the tool; the kernel frees it when the holder dies for whatever reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + timeout_s
    announced = False
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise ClusterError(f"another `cluster` command held {path} for {timeout_s:.0f} s") from None
            if not announced:
                say(f"waiting for another `cluster` command that holds {path}")
                announced = True
            time.sleep(0.2)
        yield
