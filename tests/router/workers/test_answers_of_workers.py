"""Tests of answers that are no answers: without end, in drops, packed, of any depth; and of what
this process lacks itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import aiohttp
import httpx
import pytest
from tests.router.workers.infos import worker

from disagg_router.errors import AttemptFailed
from disagg_router.membership.file import FileMembership
from disagg_router.workers import client as clients
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.lease import Verdict
from disagg_router.workers.table import WorkerTable
from disagg_router.workers.texts import Texts
from disagg_router.workers.worker_info import Member
from disagg_wire.pulse import Beat

Answer = Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
LIMIT_S = 20.0


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Yield the URL of a server that answers so whatever it is asked."""

    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await answer(writer)
                await writer.drain()
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            for task in filter(None, tasks):
                task.cancel()
            await asyncio.gather(*filter(None, tasks), return_exceptions=True)
            await asyncio.sleep(0)


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def _drops(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _packed(writer: asyncio.StreamWriter) -> None:
    body = gzip.compress(b" " * (1 << 22) + b"{}")
    writer.write(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


async def _deep(writer: asyncio.StreamWriter) -> None:
    body = b"[" * 100_000
    writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)


@pytest.mark.parametrize(
    ("answer", "error"),
    [(_endless, ValueError), (_drops, httpx.ReadTimeout), (_packed, ValueError), (_deep, ValueError)],
)
async def test_an_answer_is_bounded_in_bytes_in_time_and_in_depth(answer: Answer, error: type[Exception]) -> None:
    client = WorkerClient("bearer")
    try:
        async with answering(answer) as url, asyncio.timeout(LIMIT_S):
            with pytest.raises(error):
                await client.get(url, "/x", timeout_s=0.5)
            if answer is not _drops:
                return
            with pytest.raises(error):
                await client.post(url, "/x", {}, timeout_s=0.5)
    finally:
        await client.close()


async def test_of_beats_that_have_come_at_once_the_last_one_counts() -> None:
    lines = [Beat(i).line() for i in range(1000)]

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(lines))

    client = WorkerClient("bearer")
    try:
        async with answering(flood) as url, asyncio.timeout(LIMIT_S):
            with contextlib.suppress(Exception):
                found = []
                async for beat in client.beats(worker("d0", "decode", url=url)):
                    found.append(beat.steps)
        assert found[-1] == 999
        assert len(found) < 20
    finally:
        await client.close()


@pytest.mark.parametrize(("number", "blamed"), [(errno.EMFILE, False), (errno.ENOBUFS, False), (111, True)])
def test_no_worker_is_avoided_for_what_this_process_lacks(number: int, blamed: bool) -> None:
    key = aiohttp.client_reqrep.ConnectionKey("x", 1, False, True, None, None, None)
    one = worker("d0", "decode")
    for error in (OSError(number, "x"), aiohttp.ClientConnectorError(key, OSError(number, "x"))):
        failure = clients._broken(one, error)
        assert (failure.blame != ()) is blamed
        assert (failure.reason == "worker_lost") is blamed


class _Unwell:
    """A client whose workers do not answer in time, or have no tokenizer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def info(self, url: str, *, needs: bool) -> dict[str, object]:
        raise httpx.ReadTimeout("late")

    async def get(self, url: str, path: str, timeout_s: float = 0.0, most_bytes: int = 0) -> dict[str, object]:
        self.asked.append(url)
        raise ValueError("no tokenizer")


async def test_a_poll_counts_as_missed_only_if_this_process_was_awake() -> None:
    table = WorkerTable(_Unwell(), FileMembership(Path("none")), 1.0)  # type: ignore[arg-type]
    table._workers["d0"] = worker("d0", "decode")
    member = Member("d0", "http://d0")
    for _ in range(5):
        await table._poll(member, needs=False)
    assert "d0" in table._workers

    async def late(url: str, *, needs: bool) -> dict[str, object]:
        for tick in range(20):
            table.pulses._clock.tick(tick / 10)
        raise httpx.ReadTimeout("late")

    table._client.info = late  # type: ignore[method-assign]
    for _ in range(2):
        table.pulses._clock._last_s = None
        await table._poll(member, needs=False)
    assert "d0" not in table._workers


@pytest.mark.parametrize("beats", [True, False])
async def test_one_that_answers_no_poll_and_beats_gets_nothing_new_and_keeps_its_streams(
    beats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that can accept no connection."""
    table, reasons = WorkerTable(_Unwell(), FileMembership(Path("none")), 1.0), list[str]()  # type: ignore[arg-type]
    one = worker("d0", "decode")
    table._workers["d0"], table.gave_up = one, reasons.append
    monkeypatch.setattr(table.pulses, "vouches_for", lambda _: beats)
    monkeypatch.setattr(table._client, "info", _refused)
    ended: AttemptFailed | None = None
    try:
        async with asyncio.timeout(LIMIT_S), table.lifelines.stream(one):
            for _ in range(2):
                await table._poll(Member("d0", "http://d0"), needs=False)
            await asyncio.sleep(0)
            await asyncio.sleep(0.01)
    except AttemptFailed as failure:
        ended = failure
    assert "d0" not in table._workers
    assert (ended is None) is beats
    assert reasons == ([] if beats else ["worker_lost"])


async def _refused(url: str, *, needs: bool) -> dict[str, object]:
    await asyncio.sleep(0.001)
    raise httpx.ConnectError("refused")


def test_one_that_has_drained_and_ended_is_not_given_up() -> None:
    table, reasons = WorkerTable(_Unwell(), FileMembership(Path("none")), 1.0), list[str]()  # type: ignore[arg-type]
    table.gave_up = reasons.append
    for state, given_up in (("draining", []), ("ready", ["worker_silent"])):
        one = worker("d0", "decode", state=state)
        table._workers["d0"] = one
        table._judged(one, Verdict.SILENT)
        assert reasons == given_up
        assert "d0" not in table._workers


async def test_a_tokenizer_that_cannot_be_had_is_asked_for_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg_router.workers.texts.random.random", lambda: 0.0)
    unwell, now_s, at_s = _Unwell(), 0.0, list[float]()
    one = Texts(unwell, lambda: now_s)  # type: ignore[arg-type]
    ready = [worker(f"d{i}", "decode", url=f"http://d{i}") for i in range(3)]
    while now_s < 300:
        before = len(unwell.asked)
        await one.fetch(ready)
        at_s += [now_s] * (len(unwell.asked) - before)
        one.keep_only({"D"})
        now_s += 1
    assert at_s == [0, 2, 6, 14, 30, 62, 122, 182, 242]
    assert not one.known
