"""Tests that the pages of one namespace are bounded together, over real sockets."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from tests.connections import serving

from disagg_operator.autoscaling.signals import direct
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target


@asynccontextmanager
async def pages(sizes: dict[str, int]) -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * sizes[request.match_info["group"]])

    async with serving(web.get("/{group}/{n}", answer)) as port:
        yield port


async def kept(sizes: dict[str, int], pods: int) -> Counter[str]:
    """Return how many of the pods' pages of each namespace are kept."""
    door = DirectDoor(timeout_s=30, sweep_timeout_s=60)
    async with pages(sizes) as port:
        targets = [
            Target(f"{g}-{n}", "127.0.0.1", port, f"/{g}/{n}", group=g) for n in range(pods) for g in sorted(sizes)
        ]
        found = await door.fetch(targets)
    await door.close()
    assert all(body == "x" * sizes[target.group] for target, body in found.items())
    return Counter(target.group for target in found)


async def test_a_namespace_that_answers_too_much_counts_as_silent_beyond_that_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct, "_GROUP_BYTES", 10_000)
    monkeypatch.setattr(direct, "_TARGET_BYTES", 1_000)
    assert await kept({"big": 9_000, "small": 1_000}, 10) == {"big": 2, "small": 10}
    assert await kept({"fair": 2_000}, 10) == {"fair": 10}
    monkeypatch.setattr(direct, "_MOST_GROUP_BYTES", 5_000)
    assert await kept({"fair": 2_000}, 10) == {"fair": 2}


async def test_all_together_are_bounded_and_who_has_less_than_its_part_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_ALL_BYTES", 30_000)
    found = await kept({"a": 5_000, "b": 5_000, "small": 500}, 10)
    assert found["small"] == 10
    assert 6 <= found["a"] + found["b"] + 1 <= 7
    assert max(found["a"], found["b"]) <= 6


async def test_a_page_of_absurd_size_is_not_kept() -> None:
    assert await kept({"a": 4 * 1024 * 1024 + 1}, 1) == {}
