"""Workers that are stopped, hang or vanish in the middle of streams: what they have begun goes on
elsewhere with the same tokens, and they leave nothing behind.

The limits of these tests are far below those that would end the streams without heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.serving.burners import burners
from tests.serving.stack import router, workers

from disagg_router.dispatch.attempt import Trace
from disagg_router.dispatch.request_state import RequestState, Token
from disagg_router.router import Router
from disagg_wire import series

pytestmark = pytest.mark.slow
STREAMS, TOKENS, PROMPT = 6, 150, 40
# A stream must be over by then; without heartbeats it would stand still for 60 s.
LIMIT_S = 45.0
# How long the long form watches a healthy fleet.
MINUTES = float(os.environ.get("LIVENESS_MINUTES", "30"))


class Load:
    """Streams that run beside each other through one router."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self._begun = 0
        self.pauses_s: list[float] = []
        """The longest wait for a token of each stream that has ended."""
        self.all_run = asyncio.Event()

    async def run(self, streams: int = STREAMS, limit_s: float = LIMIT_S) -> list[list[int]]:
        """Return the tokens of each stream."""
        self._begun = 0
        self.all_run.clear()
        async with asyncio.timeout(limit_s):
            return list(await asyncio.gather(*(self._stream(i, streams) for i in range(streams))))

    async def _stream(self, number: int, streams: int) -> list[int]:
        (identity,) = {w.identity for w in self.router.table.workers()}
        sampling = {"seed": number, "max_new_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 1.0,
                    "stop_token_ids": []}  # fmt: skip
        prompt = tuple(1 + (7 * number + i) % 2000 for i in range(PROMPT))
        state = RequestState(f"stream-{number}-{time.monotonic()}", identity, prompt, sampling, 4)
        out: list[int] = []
        last_s, pause_s = time.monotonic(), 0.0
        async with contextlib.aclosing(self.router.dispatcher.run(state, Trace(), time.monotonic())) as items:
            async for item in items:
                if isinstance(item, Token):
                    now_s = time.monotonic()
                    pause_s, last_s = max(pause_s, now_s - last_s), now_s
                    out.append(item.token)
                    if len(out) == 5:
                        self._begun += 1
                        if self._begun == streams:
                            self.all_run.set()
        self.pauses_s.append(pause_s)
        return out

    def busiest(self) -> str:
        """Return the name of the decode worker with the most streams."""
        table = self.router.table
        decodes = [w for w in table.workers() if w.role == "decode"]
        return max(decodes, key=lambda w: table._requests[w.incarnation]).name

    def given_up(self, reason: str) -> float:
        return float(self.router.metrics.given_up.labels(reason)._value.get())

    async def until_at_rest(self, count: int) -> None:
        """Wait until all workers are listed again and hold no block."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                found = self.router.table.workers()
                if len(found) == count and all(w.blocks_free == w.blocks_total for w in found):
                    return
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def disturbed(load: Load, reason: str, expected: list[list[int]]) -> AsyncIterator[None]:
    """Run the streams; the block disturbs a worker when all of them run."""
    before, running = load.given_up(reason), asyncio.create_task(load.run(len(expected)))
    try:
        await load.all_run.wait()
        yield
        assert await running == expected
        assert load.given_up(reason) == before + 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_streams_go_on_elsewhere_when_a_worker_is_stopped_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANGS", str(tmp_path))
    roles = ["prefill", "prefill", "decode", "decode"]
    async with (
        workers(tmp_path, roles, "tests.serving.hanging_worker") as processes,
        router(tmp_path) as one,
    ):
        load = Load(one)
        await load.run()  # Every size of batch has been computed once.
        expected = await load.run()
        async with disturbed(load, series.WORKER_SILENT, expected):
            process = processes[load.busiest()]
            process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        await load.until_at_rest(len(roles))
        for content in ("", "gil"):
            async with disturbed(load, series.WORKER_HUNG, expected):
                flag = tmp_path / load.busiest()
                flag.write_text(content)
            flag.unlink()
            await load.until_at_rest(len(roles))
        await _prefill_stops(load, processes, expected)
        await load.until_at_rest(len(roles))


async def _prefill_stops(
    load: Load, processes: dict[str, asyncio.subprocess.Process], expected: list[list[int]]
) -> None:
    """A prefill worker stops before the first token of what it has been given."""
    process = processes["prefill-0"]
    process.send_signal(signal.SIGSTOP)
    try:
        assert await load.run() == expected
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def namespace(name: str, net: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the command prefix of a network namespace, and its address."""

    def run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "inner", "netns", name)
        run("ip", "addr", "add", f"{net}.1/30", "dev", name)
        run("ip", "link", "set", name, "up")
        run("ip", "-n", name, "addr", "add", f"{net}.2/30", "dev", "inner")
        for device in ("inner", "lo"):
            run("ip", "-n", name, "link", "set", device, "up")
        yield ("ip", "netns", "exec", name), f"{net}.2"
    finally:
        run("ip", "netns", "del", name)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="network namespaces need root, and nft")
async def test_streams_go_on_elsewhere_when_a_worker_vanishes_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No FIN, no reset: packets from and to it are dropped, until the network heals."""
    monkeypatch.setenv("HANGS", str(tmp_path))
    roles = ["prefill", "decode", "decode"]
    with namespace("disagg-live", "10.233.7") as (inside, address):
        here = ((), "10.233.7.1")
        within = {"prefill-0": here, "decode-1": here, "decode-2": (inside, address)}
        async with workers(tmp_path, roles, "tests.serving.hanging_worker", within), router(tmp_path) as one:
            load = Load(one)
            expected = await load.run()
            async with disturbed(load, series.WORKER_SILENT, expected):
                for words in (
                    "table inet cut",
                    "chain inet cut from { type filter hook input priority 0; policy drop; }",
                    "chain inet cut to { type filter hook output priority 0; policy drop; }",
                ):
                    subprocess.run([*inside, "nft", f"add {words}"], check=True)
            subprocess.run([*inside, "nft", "delete table inet cut"], check=True)
            await load.until_at_rest(len(roles))


@pytest.mark.long
async def test_a_healthy_fleet_never_looks_dead(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """At full load, with all processors taken by other processes."""
    until_s, streams = time.monotonic() + 60 * MINUTES, 0
    async with workers(tmp_path, ["prefill", "decode", "decode"]), router(tmp_path) as one:
        load = Load(one)
        expected = await load.run(12, 600.0)
        with burners():
            while time.monotonic() < until_s:
                assert await load.run(12, 600.0) == expected
                streams += 12
        reasons = (series.WORKER_SILENT, series.WORKER_HUNG, series.WORKER_LOST)
        assert [load.given_up(reason) for reason in reasons] == [0, 0, 0]
        record_property("result", f"{streams} streams in {MINUTES:g} minutes, 0 workers given up")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["stop", "step", "gil"])
async def test_the_next_token_comes_within_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """Beside an idle worker, at the 95th percentile. The machine must be idle."""
    monkeypatch.setenv("HANGS", str(tmp_path))
    busy = os.getloadavg()[0] > 1.0
    async with (
        workers(tmp_path, ["prefill", "decode", "decode"], "tests.serving.hanging_worker") as processes,
        router(tmp_path) as one,
    ):
        load = Load(one)
        await load.run()
        expected = await load.run()
        load.pauses_s.clear()
        for _ in range(8):
            async with disturbed(load, series.WORKER_SILENT if kind == "stop" else series.WORKER_HUNG, expected):
                process, flag = processes[load.busiest()], tmp_path / load.busiest()
                if kind == "stop":
                    process.send_signal(signal.SIGSTOP)
                else:
                    flag.write_text(kind)
            process.send_signal(signal.SIGCONT)
            flag.unlink(missing_ok=True)
            await load.until_at_rest(3)
        pauses_s = sorted(load.pauses_s)
        p95_s = pauses_s[int(0.95 * len(pauses_s))]
        note = ", on a machine that was not idle" if busy else ""
        record_property("result", f"{kind}: longest pause p95 {p95_s:.2f} s, most {pauses_s[-1]:.2f} s{note}")
        assert busy or p95_s < 2.0
