"""Tests of prompts and KV that take far longer than others, although nobody is dead."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.fakes.token_worker import TokenWorker, expected_text
from tests.router.stack import Stack, tokens_of

from disagg_router.dispatch import legs

N = 12
WANTED = expected_text(5, tokens_of("hello"), N)


def _pool() -> list[TokenWorker]:
    return [TokenWorker(f"{role[0]}{i}", role) for role in ("prefill", "decode") for i in range(2)]


async def _learn(stack: Stack) -> None:
    for _ in range(25):
        assert (await stack.complete(max_tokens=N)).json()["choices"][0]["text"] == WANTED


async def _until_one_is_met(stack: Stack, events: list[asyncio.Event], reason: str) -> float:
    """Ask while the event of one worker after the other is cleared, until the one that is chosen is
    slow, and return how often attempts have failed for this reason.
    """
    for event in events * 20:
        event.clear()
        assert (await stack.complete(max_tokens=N)).json()["choices"][0]["text"] == WANTED
        event.set()
        if failed := await stack.metric(f'disagg_router_failovers_total{{reason="{reason}"}}'):
            return failed
    return 0.0


async def test_a_prompt_that_stands_still_is_computed_elsewhere(tmp_path: Path) -> None:
    """Nothing else would notice it within 120 s."""
    pool = _pool()
    async with Stack(tmp_path, *pool, poll_interval_s=1.0) as stack:
        await _learn(stack)
        assert await _until_one_is_met(stack, [w.hold for w in pool[:2]], "slow_prefill") == 1.0
        assert await stack.metric('disagg_router_breakers{kind="worker",state="open"}') == 0.0


async def test_kv_that_does_not_arrive_is_sent_by_another_pair_and_the_slow_one_is_avoided(tmp_path: Path) -> None:
    pool = _pool()
    async with Stack(tmp_path, *pool, poll_interval_s=1.0) as stack:
        await _learn(stack)
        stack.router.table.breaker.first_s = 30.0
        failed = await _until_one_is_met(stack, [w.sends for w in pool[:2]], "slow_link")
        assert failed >= 1.0
        assert await stack.metric('disagg_router_breakers{kind="pair",state="open"}') == failed
        assert await stack.metric('disagg_router_breaker_changes_total{kind="pair",state="open"}') == failed


async def test_an_event_that_has_come_counts_although_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that has starved finds both at once, and takes nobody for slow."""
    monkeypatch.setattr(legs, "_OVERDUE_S", 20.0)
    options = {"first_token_timeout_s": 1e-6, "stall_timeout_s": 1e-6}
    async with Stack(tmp_path, TokenWorker("p0", "prefill"), TokenWorker("d0", "decode"), **options) as stack:
        answer = (await stack.complete(max_tokens=N)).json()
        assert answer["choices"][0]["text"] == WANTED
        assert answer["disagg"]["attempts"] == 1
        assert await stack.metric('disagg_router_failovers_total{reason="stalled"}') == 0.0
