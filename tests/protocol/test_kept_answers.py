"""Tests of streams that outlive their reader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.protocol.test_stream_store import NAME, record, token, tokens_in

from disagg_protocol.bodies import Line, Lines, encoded
from disagg_protocol.keep_limits import KeepLimits
from disagg_protocol.kept_answers import KeptAnswers
from disagg_protocol.requests import Job

END: Line = {"type": "end", "finish_reason": "length"}


class Made:
    """A job whose lines the test makes."""

    def __init__(self, answers: KeptAnswers, **named: Any) -> None:
        self._queue: asyncio.Queue[Line | Exception] = asyncio.Queue()
        self.closed = 0
        self.record = record(**named)
        self.key = self.record.key
        job = Job(self._lines(), self._close, lambda error: None, time.monotonic() + 60)
        self.job = answers.keep(job, self._close, self.record)

    def _close(self) -> None:
        self.closed += 1

    async def _lines(self) -> AsyncIterator[Line | Lines]:
        while True:
            line = await self._queue.get()
            if isinstance(line, Exception):
                raise line
            # Adapters send several lines at once.
            yield encoded(line) if line["type"] == "token" and line["index"] % 2 else line
            if line["type"] == "end":
                return

    async def make(self, *lines: Line | Exception) -> None:
        for line in lines:
            self._queue.put_nowait(line)
        for _ in range(10):
            await asyncio.sleep(0)


async def some(lines: AsyncIterator[Line | Lines], tokens: int = 1 << 20) -> list[Line]:
    """Return lines until there are so many tokens, or the end."""
    out: list[Line] = []
    async with asyncio.timeout(10):
        async for content in lines:
            out += tokens_in(content.content if isinstance(content, Lines) else encoded(content).content)
            if sum(line["type"] == "token" for line in out) >= tokens:
                break
    return out


async def test_a_reader_gets_the_lines_and_the_job_ends_after_the_last_one() -> None:
    answers = KeptAnswers(KeepLimits())
    made = Made(answers)
    lines = [token(0, 5), token(1, 6), END]
    await made.make(*lines)
    assert made.closed == 0
    assert await some(made.job.lines) == lines
    made.job.close()
    assert made.closed == 1
    opened = answers.open(made.key)
    assert opened is not None
    assert await some(opened[0]) == lines
    opened[1]()


async def test_it_goes_on_without_a_reader_and_for_a_new_one() -> None:
    answers = KeptAnswers(KeepLimits())
    made = Made(answers)
    await made.make(token(0, 5))
    await some(made.job.lines, 1)
    made.job.close()
    made.job.close()
    await made.make(token(1, 6))
    first, second = answers.open(made.key), answers.open(made.key)
    assert first is not None
    assert second is not None
    assert await some(first[0], 2) == [token(0, 5), token(1, 6)]
    first[1]()
    assert list(answers.unread) == []
    await made.make(token(2, 7), END)
    assert await some(second[0]) == [token(0, 5), token(1, 6), token(2, 7), END]
    second[1]()
    assert made.closed >= 1


async def test_without_a_reader_it_ends_after_its_time_and_what_was_made_stays() -> None:
    answers = KeptAnswers(KeepLimits(unread_s=0.02))
    made = Made(answers)
    await made.make(token(0, 5))
    made.job.close()
    async with asyncio.timeout(10):
        while not made.closed:
            await asyncio.sleep(0.005)
    opened = answers.open(made.key)
    assert opened is not None
    *lines, end = await some(opened[0])
    assert lines == [token(0, 5)]
    assert (end["type"], end["code"], end["retryable"]) == ("error", "cancelled", True)
    await made.make(token(1, 6))
    assert len(made.record.tokens) == 1


async def test_what_has_no_token_ends_with_its_reader() -> None:
    answers = KeptAnswers(KeepLimits())
    made = Made(answers)
    await made.make({"type": "accepted", "path": "local"})
    made.job.close()
    assert made.closed >= 1
    assert not answers.unread


async def test_a_stream_that_is_not_kept_any_more_ends_with_its_reader() -> None:
    answers = KeptAnswers(KeepLimits(most_bytes=1500))
    made = Made(answers)
    lines = [token(i, 5) for i in range(300)]
    await made.make(*lines)
    assert len(answers.store) == answers.store.size_bytes == 0
    async with asyncio.timeout(10):
        assert await some(made.job.lines, 300) == lines
    assert answers.open(made.key) is None
    made.job.close()
    assert made.closed >= 1


async def test_few_streams_are_made_without_a_reader() -> None:
    answers = KeptAnswers(KeepLimits(unread_streams=2))
    many = [Made(answers, name=f"{i:064x}") for i in range(5)]
    for made in many:
        await made.make(token(0, 5))
    for made in many:
        made.job.close()
    assert [bool(made.closed) for made in many] == [True, True, True, False, False]
    for made in many:
        answers.stop(*made.key[:3])
    assert all(made.closed for made in many)
    assert len(answers.store) == 5


async def test_whoever_stops_it_ends_it_for_all_readers() -> None:
    answers = KeptAnswers(KeepLimits())
    made = Made(answers)
    await made.make(token(0, 5))
    answers.stop(NAME, "another", 0)
    answers.stop(NAME, "1", 1)
    assert made.closed == 0
    answers.stop(NAME, "1", 0)
    assert made.closed >= 1
    *_, end = await some(made.job.lines)
    assert end["code"] == "cancelled"


async def test_a_job_that_fails_is_an_error_that_others_may_not_have() -> None:
    answers = KeptAnswers(KeepLimits())
    made = Made(answers)
    await made.make(token(0, 5), RuntimeError("as told"))
    *_, end = await some(made.job.lines)
    assert (end["code"], end["retryable"]) == ("internal", True)


async def test_what_is_kept_goes_when_its_time_is_over() -> None:
    answers = KeptAnswers(KeepLimits(keep_s=0.05))
    made = Made(answers)
    await made.make(token(0, 5), END)
    await some(made.job.lines)
    made.job.close()
    async with asyncio.timeout(10):
        while len(answers.store):
            await asyncio.sleep(0.01)
    assert answers.open(made.key) is None


async def test_the_same_attempt_twice_is_one_stream() -> None:
    answers = KeptAnswers(KeepLimits())
    one, two = Made(answers), Made(answers)
    assert one.closed >= 1
    await two.make(token(0, 7), END)
    opened = answers.open(two.key)
    assert opened is not None
    assert await some(opened[0]) == [token(0, 7), END]
