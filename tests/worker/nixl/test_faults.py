"""Tests of transfers by NIXL between two processes, of which one is stopped or killed in the
middle: no block is given to somebody else while it may still be written, none is lost, and nothing
half-written is used.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
BLOCK_BYTES = 64 << 10
NEAR, FAR = "near", "far"


class End:
    """A process of tests.worker.nixl.end."""

    def __init__(self, nixl: Path, tls: str, role: str, processes: str, release_s: float) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPYCACHEPREFIX") if name in os.environ}
        environment |= {"PYTHONPATH": f"{REPO}:{REPO}/worker:{nixl}", "UCX_TLS": tls, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.worker.nixl.end", role, "127.0.0.1", processes, str(release_s)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO
        )

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        self.tell(do, **more)
        return self.answer()

    def tell(self, do: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def until(self, ids: list[int], what: Any) -> dict[str, Any]:
        """Ask for the state until it is as it should be."""
        deadline_s = time.monotonic() + 120
        while not what(state := self.ask("state", ids=ids)):
            assert time.monotonic() < deadline_s, state
            time.sleep(0.02)
        return state

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


@contextmanager
def ends(nixl: Path, tls: str, processes: str = NEAR, release_s: float = 120.0) -> Iterator[tuple[End, End]]:
    """Yield prefill and decode. Decode is always near."""
    pair = [
        End(nixl, tls, "prefill", processes, release_s),
        End(nixl, tls, "decode", NEAR, release_s),
    ]
    try:
        for end in pair:
            assert end.answer() == {}
        yield pair[0], pair[1]
    finally:
        for end in pair:
            end.end()


SOURCE, TARGET = list(range(5, 205)), list(range(400, 200, -1))


def whole(prefill: End, decode: End, integrity: str = "mac") -> dict[str, Any]:
    """Make a transfer, and check that the blocks are there."""
    ticket = decode.ask("offer", ids=TARGET, integrity=integrity)["ticket"]
    sent = prefill.ask("send", ticket=ticket, ids=SOURCE)
    received, done = decode.ask("outcome"), prefill.ask("outcome")
    assert received.get("kv_bytes") == len(SOURCE) * BLOCK_BYTES, (received, done)
    assert (done["kv_bytes"], received["token"], received["moved"]) == (received["kv_bytes"], 7, done["moved"])
    state = decode.ask("state", ids=TARGET)
    assert state["digest"] == sent["digest"]
    assert (state["held"], state["released"][-1]) == (0, 0)
    return done


def half(prefill: End, decode: End) -> list[int]:
    """Make a half of a transfer; return the blocks that decode has reserved for all of it."""
    ticket = decode.ask("offer", ids=TARGET)["ticket"]
    digest = prefill.ask("send", ticket=ticket, ids=SOURCE[:100], end=False)["digest"]
    decode.until(TARGET[:100], lambda state: state["digest"] == digest)
    return TARGET


@pytest.mark.parametrize(
    ("tls", "transport"), [("tcp", "tcp"), ("cma,tcp", "shm"), pytest.param("posix,tcp", "tcp", marks=pytest.mark.long)]
)
def test_what_moved_is_what_is_said(nixl: Path, tls: str, transport: str) -> None:
    """UCX writes by posix memory only into what it has allocated itself: that goes over TCP."""
    with ends(nixl, tls) as (prefill, decode):
        for integrity in ("mac", "crc32c"):
            done = whole(prefill, decode, integrity)
            assert done["moved"] == {
                "transport": transport,
                "evidence": "Proved",
                "interface": "lo" if transport == "tcp" else "",
            }


@pytest.mark.parametrize("tls", [pytest.param("tcp", marks=pytest.mark.long), "cma,tcp"])
def test_a_frozen_neighbour_holds_its_blocks_until_it_says_that_it_writes_no_more(nixl: Path, tls: str) -> None:
    with ends(nixl, tls) as (prefill, decode):
        half(prefill, decode)
        prefill.process.send_signal(signal.SIGSTOP)
        assert "timed out" in decode.ask("outcome")["error"]
        state = decode.ask("state", ids=TARGET)
        assert (state["held"], state["released"]) == (len(TARGET), [0])
        assert decode.ask("offer", ids=TARGET)["agent"] is None  # It gets no more before.
        prefill.process.send_signal(signal.SIGCONT)
        decode.until(TARGET, lambda s: (s["held"], s["released"][0]) == (0, 1))
        assert "error" in prefill.ask("outcome")
        whole(prefill, decode)


@pytest.mark.parametrize("tls", [pytest.param("tcp", marks=pytest.mark.long), "cma,tcp"])
def test_a_killed_neighbour_gives_its_blocks_back(nixl: Path, tls: str) -> None:
    with ends(nixl, tls, release_s=0.5) as (prefill, decode):
        half(prefill, decode)
        prefill.process.kill()
        assert "error" in decode.ask("outcome")
        decode.until(TARGET, lambda s: (s["held"], s["released"]) == (0, [1]))
        other = End(nixl, tls, "prefill", NEAR, 0.5)
        try:
            assert other.answer() == {}
            whole(other, decode)
        finally:
            other.end()


def test_a_neighbour_that_is_frozen_for_long_holds_its_blocks_though_the_agent_is_replaced(nixl: Path) -> None:
    with ends(nixl, "cma,tcp", release_s=0.2) as (prefill, decode):
        half(prefill, decode)
        prefill.process.send_signal(signal.SIGSTOP)
        assert "timed out" in decode.ask("outcome")["error"]
        agent = decode.ask("offer", ids=TARGET, prefill="other/boot")["agent"]
        decode.ask("cancel")
        while (found := decode.ask("offer", ids=TARGET, prefill="other/boot")["agent"]) == agent:
            decode.ask("cancel")
            time.sleep(0.05)
        assert found is not None
        state = decode.ask("state", ids=TARGET)
        assert (state["held"], state["released"][0]) == (len(TARGET), 0)
        prefill.process.kill()
        decode.until(TARGET, lambda s: (s["held"], s["released"][0]) == (0, 1))


def test_a_frozen_worker_elsewhere_can_write_no_more_once_the_agent_is_closed(nixl: Path) -> None:
    with ends(nixl, "tcp", FAR, release_s=0.2) as (prefill, decode):
        half(prefill, decode)
        prefill.process.send_signal(signal.SIGSTOP)
        assert "timed out" in decode.ask("outcome")["error"]
        before = decode.until(TARGET, lambda s: (s["held"], s["released"]) == (0, [1]))["digest"]
        prefill.process.send_signal(signal.SIGCONT)
        prefill.tell("send", ticket={}, ids=SOURCE[100:], first=100)  # It goes on, and is late.
        prefill.answer()
        assert "error" in prefill.ask("outcome")
        assert decode.ask("state", ids=TARGET)["digest"] == before
        whole(prefill, decode)


def test_a_frozen_decode_worker_costs_prefill_its_own_deadline(nixl: Path) -> None:
    with ends(nixl, "tcp") as (prefill, decode):
        whole(prefill, decode)
        many = list(range(1000))
        ticket = decode.ask("offer", ids=many)["ticket"]
        digest = prefill.ask("send", ticket=ticket, ids=many[:10], end=False)["digest"]
        decode.until(many[:10], lambda state: state["digest"] == digest)
        decode.process.send_signal(signal.SIGSTOP)
        prefill.ask("send", ticket=ticket, ids=many[10:], first=10)
        assert "NIXL has not written" in prefill.ask("outcome")["error"]
        decode.process.send_signal(signal.SIGCONT)
        assert "error" in decode.ask("outcome")
        decode.until(many, lambda s: (s["held"], s["released"][-1]) == (0, 1))
        whole(prefill, decode)


@pytest.mark.parametrize("who", ["prefill", "decode"])
def test_a_cancel_on_either_side_frees_the_blocks_at_once(nixl: Path, who: str) -> None:
    with ends(nixl, "cma,tcp") as (prefill, decode):
        half(prefill, decode)
        {"prefill": prefill, "decode": decode}[who].ask("cancel")
        assert "error" in decode.ask("outcome")
        assert "error" in prefill.ask("outcome")
        decode.until(TARGET, lambda s: (s["held"], s["released"]) == (0, [1]))
        whole(prefill, decode)
