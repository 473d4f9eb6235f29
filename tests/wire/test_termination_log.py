"""Tests of what a process leaves for whoever looks after its end."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from disagg_wire import termination_log


async def test_what_is_kept_is_what_was_last_true(tmp_path: Path) -> None:
    path, said, looks = tmp_path / "log", "", 0
    path.touch()

    def message() -> str:
        nonlocal looks
        looks += 1
        return said

    async def left(text: str) -> None:
        nonlocal said
        said, before = text, looks
        async with asyncio.timeout(10):
            while looks < before + 2:
                await asyncio.sleep(0)
        assert path.read_text() == text

    task = asyncio.create_task(termination_log.keep(message, path, 0.0))
    await left("3 requests")
    await left("2 requests")
    path.write_text("")
    assert said == "2 requests"
    before = looks
    async with asyncio.timeout(10):
        while looks < before + 2:
            await asyncio.sleep(0)
    assert path.read_text() == ""  # it is written only when it has changed
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_without_the_file_of_a_kubelet_nothing_is_written(tmp_path: Path) -> None:
    termination_log.leave("x", tmp_path / "log")
    assert not (tmp_path / "log").exists()
