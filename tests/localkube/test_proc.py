"""Tests that only processes that were started here are ever ended.

A pid file whose process has ended counts for nothing, even if its pid is in use again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localkube import proc
from localkube.proc import Daemon
from localkube.settings import Settings

# A daemon outlives its starter on purpose, and Python warns about that when the handle is
# collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    settings = Settings(cache=tmp_path / "cache", state=tmp_path / "state")
    settings.pids.mkdir(parents=True)
    settings.logs.mkdir(parents=True)
    return Daemon("sleeper", SLEEP, settings)


def test_a_daemon_starts_once_is_started_anew_when_it_died_and_ends(daemon: Daemon) -> None:
    assert daemon.start()
    first = daemon.pid()
    assert not daemon.start()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert daemon.pid() is None
    assert daemon.start()
    second = daemon.pid()
    assert second not in (None, first)
    assert proc.stop_recorded(daemon.pid_file)
    assert not proc.stop_recorded(daemon.pid_file)
    assert daemon.pid() is None


def test_other_arguments_replace_the_process(daemon: Daemon) -> None:
    daemon.start()
    first = daemon.pid()
    other = Daemon(daemon.name, (*SLEEP, "another"), daemon.settings)
    assert other.start()
    assert other.pid() not in (None, first)
    proc.stop_recorded(other.pid_file)


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', '{"pid": "x", "start_ticks": 1}'])
def test_a_garbled_pid_file_names_no_process(daemon: Daemon, content: str) -> None:
    daemon.pid_file.write_text(content)
    assert daemon.pid() is None
    assert not proc.stop_recorded(daemon.pid_file)


def test_a_recycled_pid_is_left_alone(daemon: Daemon) -> None:
    with subprocess.Popen(SLEEP) as stranger:
        ticks = proc.start_ticks(stranger.pid)
        assert ticks is not None
        daemon.pid_file.write_text(json.dumps({"pid": stranger.pid, "start_ticks": ticks - 1, "argv": list(SLEEP)}))
        assert not proc.stop_recorded(daemon.pid_file)
        assert stranger.poll() is None
        stranger.kill()
