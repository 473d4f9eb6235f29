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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.serving.burners import burners
from tests.serving.stack import router, workers

from disagg_router.dispatch.request_state import RequestState, Token
from disagg_router.dispatch.trace import Trace
from disagg_router.router import Router
from disagg_router.workers.worker_info import Worker
from disagg_wire import series

pytestmark = pytest.mark.slow
Processes = dict[str, asyncio.subprocess.Process]
STREAMS, TOKENS, PROMPT = 6, 150, 40
# A stream must be over by then; without heartbeats it would stand still for 60 s.
LIMIT_S = 45.0
# How long the long form watches a healthy fleet.
MINUTES = float(os.environ.get("LIVENESS_MINUTES", "30"))


class Load:
    """Streams that run beside each other through one router."""

    def __init__(self, router: Router, prompt: int = PROMPT, tokens: int = TOKENS) -> None:
        self.router = router
        self._prompt = prompt
        self._tokens = tokens
        self._begun = 0
        self.pauses_s: list[float] = []
        """The longest wait for a token of each stream that has ended."""
        self.first_s: list[float] = []
        """The wait for the first token of each."""
        self.all_run = asyncio.Event()

    async def run(self, streams: int = STREAMS, limit_s: float = LIMIT_S) -> list[list[int]]:
        """Return the tokens of each stream."""
        self._begun = 0
        self.all_run.clear()
        async with asyncio.timeout(limit_s):
            return list(await asyncio.gather(*(self._stream(i, streams) for i in range(streams))))

    async def _stream(self, number: int, streams: int) -> list[int]:
        (identity,) = {w.identity for w in self.router.table.workers()}
        sampling = {"seed": number, "max_new_tokens": self._tokens, "min_tokens": self._tokens, "temperature": 1.0,
                    "stop_token_ids": []}  # fmt: skip
        prompt = tuple(1 + (7 * number + i) % 2000 for i in range(self._prompt))
        state = RequestState(f"stream-{number}-{time.monotonic()}", identity, prompt, sampling, 4)
        out: list[int] = []
        last_s, pause_s = time.monotonic(), 0.0
        async with contextlib.aclosing(self.router.dispatcher.run(state, Trace(), time.monotonic())) as items:
            async for item in items:
                if isinstance(item, Token):
                    now_s = time.monotonic()
                    if not out:
                        self.first_s.append(now_s - last_s)
                    pause_s, last_s = max(pause_s, now_s - last_s), now_s
                    out.append(item.token)
                    if len(out) == 5:
                        self._begun += 1
                        if self._begun == streams:
                            self.all_run.set()
        self.pauses_s.append(pause_s)
        return out

    def given_up(self, reason: str) -> float:
        return float(self.router.metrics.given_up.labels(reason)._value.get())

    async def until_at_rest(self, count: int) -> None:
        """Wait until all workers are listed again, have shaken hands and hold no block."""

        def at_rest() -> bool:
            shaken = self.router.handshakes.counts()
            return (
                len(found) == count
                and all(w.blocks_free == w.blocks_total for w in found)
                and shaken["healthy"] == shaken["expected"]
            )

        found: list[Worker] = []
        try:
            async with asyncio.timeout(LIMIT_S):
                while not at_rest():
                    await asyncio.sleep(0.05)
                    found = list(self.router.table.workers())
        except TimeoutError:
            states = {w.name: f"{w.state}, {w.blocks_free} of {w.blocks_total} blocks free" for w in found}
            raise AssertionError(f"not at rest: {states}") from None


async def hang(load: Load, folder: Path, how: str, processes: Processes, expected: list[list[int]]) -> None:
    """Run the streams; the first decode worker with 20 steps of them is stopped, or hangs."""
    reason = series.WORKER_SILENT if how == "stop" else series.WORKER_HUNG
    before = load.given_up(reason)
    (folder / "new").write_text(how)
    (folder / "new").rename(folder / "next")
    try:
        assert await load.run(len(expected)) == expected
        assert load.given_up(reason) == before + 1
        # Nothing of the others waits for it.
        await load.until_at_rest(len(processes) - 1)
    finally:
        (folder / "next").unlink(missing_ok=True)
        for name, process in processes.items():
            (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
    await load.until_at_rest(len(processes))


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
        expected = await load.run()
        for how in ("stop", "step", "gil"):
            await hang(load, tmp_path, how, processes, expected)
        await _prefill_stops(load, processes, expected)
        await load.until_at_rest(len(roles))


async def _prefill_stops(load: Load, processes: Processes, expected: list[list[int]]) -> None:
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
            before, running = load.given_up(series.WORKER_SILENT), asyncio.create_task(load.run())
            try:
                await load.all_run.wait()
                for words in (
                    "table inet cut",
                    "chain inet cut from { type filter hook input priority 0; policy drop; }",
                    "chain inet cut to { type filter hook output priority 0; policy drop; }",
                ):
                    subprocess.run([*inside, "nft", f"add {words}"], check=True)
                assert await running == expected
                assert load.given_up(series.WORKER_SILENT) == before + 1
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
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
        expected = await load.run()
        load.pauses_s.clear()
        for _ in range(8):
            await hang(load, tmp_path, kind, processes, expected)
        pauses_s = sorted(load.pauses_s)
        p95_s = pauses_s[int(0.95 * len(pauses_s))]
        note = ", on a machine that was not idle" if busy else ""
        record_property("result", f"{kind}: longest pause p95 {p95_s:.2f} s, most {pauses_s[-1]:.2f} s{note}")
        assert busy or p95_s < 2.0
