"""Tests of workers of release 0.1.0, from its wheel, beside today's: each pair moves KV, by the
frames that both know.
"""

from __future__ import annotations

import asyncio
import time
import zipfile
from pathlib import Path

import pytest
from tests.serving.stack import WAIT_S, router, workers
from tests.serving.test_identity import SAMPLING, _model
from tests.worker.server.rig import prompt

from disagg_router.dispatch.attempt import Finished
from disagg_router.dispatch.request_state import RequestState
from disagg_router.dispatch.trace import Trace
from disagg_router.router import Router
from disagg_wire.protocol import FEATURE_PREFILL_INCARNATION

WHEEL = Path(__file__).parents[1] / "releases/0.1.0/disagg-0.1.0-py3-none-any.whl"
OLD = ("prefill-0", "decode-2")


async def _answer(one: Router, number: int) -> tuple[list[int], Trace]:
    tokens = tuple(prompt(200, start=number % 4))
    state, trace = RequestState(f"r{number}", _model(one), tokens, SAMPLING, 1, tenant=str(number)), Trace()
    async for event in one.dispatcher.run(state, trace, time.monotonic()):
        assert isinstance(event, Finished) or event.token >= 0
    return state.emitted, trace


@pytest.mark.slow
async def test_an_old_and_a_new_worker_pair_and_give_the_same_tokens(tmp_path: Path) -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(tmp_path / "old")
    within = dict.fromkeys(OLD, (("env", f"PYTHONPATH={tmp_path / 'old'}"), "127.0.0.1"))
    roles = ["prefill", "prefill", "decode", "decode"]
    async with (
        workers(tmp_path, roles, "disagg_worker", within, dtype="float32", threads="1"),
        router(tmp_path, local_prefill_max_tokens="0") as one,
    ):
        async with asyncio.timeout(WAIT_S):
            while one.handshakes.counts() != {"expected": 4, "healthy": 4}:
                await asyncio.sleep(0.05)
        # Only today's workers bind tickets.
        assert {w.name for w in one.table.workers() if FEATURE_PREFILL_INCARNATION not in w.features} == set(OLD)
        found = await asyncio.gather(*(_answer(one, number) for number in range(16)))
    pairs = set()
    for _, trace in found:
        assert (trace.path, trace.attempts) == ("remote", 1)
        assert trace.prefill is not None
        assert trace.decode is not None
        assert trace.kv_bytes
        pairs.add((trace.prefill.name in OLD, trace.decode.name in OLD))
    assert {(True, False), (False, True)} <= pairs, pairs
    for number, (tokens, _) in enumerate(found):
        assert tokens == found[number % 4][0]
