"""Tests of the loss of a rank: if it dies, hangs or cannot start, its worker ends soon and with the
reason.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
from pathlib import Path

import pytest
from tests.worker import checkpoints
from tests.worker.collector import Collector
from tests.worker.execution.conftest import Start

from disagg_protocol.errors import ModelError, NoCapacity
from disagg_protocol.events import ErrorEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine

pytestmark = pytest.mark.slow
LONG = SamplingParams(seed=3, max_new_tokens=60000, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("tiny"), max_position_embeddings=65536)


def ranks() -> list[int]:
    """Return the process IDs of this process's ranks."""
    for _ in range(1000):
        # If a thread or a child ends meanwhile, its children belong to another one, so all are
        # listed again.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = {
                int(pid)
                for task in Path("/proc/self/task").iterdir()
                for pid in (task / "children").read_text().split()
            }
            return sorted(
                pid for pid in children if b"disagg_worker.execution.rank" in Path(f"/proc/{pid}/cmdline").read_bytes()
            )
    raise AssertionError("threads and processes come and go all the time")


def running(engine: TorchEngine) -> Collector:
    """Start a request that goes on until it is stopped."""
    sink = Collector()
    engine.generate("r", list(range(1, 40)), 39, LONG, sink)
    sink.wait_tokens(3)
    return sink


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "rank 1 of 2 was killed by SIGKILL"), (signal.SIGSTOP, "rank 0 of 2")]
)
def test_a_rank_that_ends_or_hangs_ends_the_engine(
    folder: Path, start: Start, number: signal.Signals, reason: str
) -> None:
    lost: queue.Queue[str] = queue.Queue()
    engine = start(folder, 2, on_lost=lost.put, kv_cache_bytes=64 << 20, rank_timeout_s=2.0)
    sink = running(engine)
    os.kill(ranks()[0], number)
    end = sink.wait()
    assert isinstance(end, ErrorEvent)
    assert end.retryable
    assert reason in lost.get(timeout=60)
    with pytest.raises(NoCapacity):
        engine.generate("r", [1], 1, LONG, Collector())
    engine.stop(10)
    assert not engine.alive()
    assert not ranks()
    assert lost.empty()  # It is reported once.


def test_an_engine_that_stops_leaves_no_process(folder: Path, start: Start) -> None:
    engine = start(folder, 2, kv_cache_bytes=64 << 20)
    assert len(ranks()) == 1
    sink = running(engine)
    engine.stop(10)
    assert sink.wait() == ErrorEvent("draining", "the worker is stopping", retryable=True)
    assert not ranks()


def test_a_rank_that_can_not_load_says_why(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.make(tmp_path)
    # No device on a CPU is refused by rank 1 alone, so its interpreter is made unable to start.
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(ModelError, match="rank 1 of 2 ended with status 1"):
        start(folder, 2)
    assert not ranks()


def test_a_rank_that_is_late_is_not_waited_for(folder: Path, start: Start) -> None:
    with pytest.raises(ModelError, match=r"rank 1 of 2 did not load its weights within 0\.01 s"):
        start(folder, 2, kv_cache_bytes=64 << 20, rank_start_timeout_s=0.01)
    assert not ranks()


def _listening() -> set[str]:
    """Return the hexadecimal addresses on which this process and its ranks accept connections."""
    inodes = set()
    for pid in (os.getpid(), *ranks()):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    rows = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_ranks_listen_on_loopback_alone(folder: Path, start: Start) -> None:
    start(folder, 2, kv_cache_bytes=64 << 20)
    assert _listening() == {"0100007F"}
