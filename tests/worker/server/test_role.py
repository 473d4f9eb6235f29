"""Tests of a change of role while a worker serves: running requests finish, the weights stay, and
no request is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.client import Line, body, tokens_of
from tests.worker.server.rig import Pair, Running, pair, prompt, running

from disagg_protocol.events import ErrorEvent
from disagg_protocol.requests import Job

CLOSED = ErrorEvent("closed", "", retryable=False)
LONG = body(prompt(20), max_new_tokens=60000)


async def _nothing() -> AsyncIterator[Line]:
    await asyncio.Event().wait()
    yield {}


async def ask(worker: Running, role: str, **fields: Any) -> tuple[int, Line]:
    answer = await worker.http.post("/internal/v1/role", json={"role": role} | fields)
    return answer.status_code, answer.json()


async def changed(worker: Running, role: str) -> Line:
    """Ask for the role until the worker has it, as the operator does."""
    async with asyncio.timeout(20):
        while (answer := await ask(worker, role))[0] == 202:
            await asyncio.sleep(0.01)
    assert answer[0] == 200, answer
    return answer[1]


async def test_what_runs_on_a_decode_worker_finishes_and_then_it_prefills_for_the_other(tiny: Path) -> None:
    async with pair(tiny) as both, running("decode", tiny) as flipping:
        reference, _ = await both.generate(body(prompt(40)))
        assert flipping.worker.node is not None
        engine, before = flipping.worker.node.engine, (await flipping.http.get("/internal/v1/info")).json()
        request = body(prompt(30), max_new_tokens=1500) | {"mode": "local"}
        async with flipping.call("decode", request) as events:
            for _ in range(3):
                await anext(events)
            status, said = await ask(flipping, "prefill")
            assert (status, said["role"], said["changing_to"], said["state"]) == (202, "decode", "prefill", "draining")
            assert (await flipping.http.get("/readyz")).status_code == 503
            assert (await flipping.refused("decode", request))[1]["code"] == "draining"
            assert (await ask(flipping, "both"))[0] == 409
            rest = [line async for line in events]
        assert rest[-1] == {"type": "end", "finish_reason": "length"}
        assert tokens_of(rest)[-1][0] == 1499
        done = await changed(flipping, "prefill")
        assert (done["role"], done["role_epoch"], done["state"], done["running_requests"]) == ("prefill", 1, "ready", 0)
        after = (await flipping.http.get("/internal/v1/info")).json()
        assert after["incarnation"] != before["incarnation"]
        assert after["incarnation"].split("/")[0] == before["incarnation"].split("/")[0]
        assert {**after["kv"], "blocks_free": 0} == {**before["kv"], "blocks_free": 0}
        assert after["kv"]["blocks_free"] == after["kv"]["blocks_total"]
        assert flipping.worker.node.engine is engine
        assert (await flipping.http.get("/readyz")).status_code == 200
        assert (await flipping.refused("decode", request))[1]["code"] == "other_role"
        first, rest = await Pair(flipping, both.decode).generate(body(prompt(40)))
        assert tokens_of(first) == tokens_of(reference)
        assert rest[-1] == {"type": "end", "finish_reason": "length"}
        await both.empty()
        await flipping.empty()


async def test_at_the_deadline_what_still_runs_is_sent_elsewhere_and_the_kv_is_free(tiny: Path) -> None:
    """Run a request that streams, and one that waits for the KV which its ticket announced."""
    async with pair(tiny) as both:
        local, remote = (both.decode.call("decode", LONG | {"mode": mode}) for mode in ("local", "remote"))
        async with local as streams, remote as waits:
            await anext(streams)
            assert (await anext(waits))["type"] == "ticket"
            assert (await ask(both.decode, "prefill", deadline_s=0.2))[0] == 202
            ends = [[line async for line in stream][-1] for stream in (streams, waits)]
        assert [(e["type"], e["code"], e["retryable"]) for e in ends] == [("error", "draining", True)] * 2
        await changed(both.decode, "prefill")
        await both.decode.empty()
        assert len(tokens_of(await both.decode.lines("prefill", body(prompt(9)) | {"ticket": None}))) == 1


async def test_a_peer_that_does_not_read_can_not_hold_the_role(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg_worker.server.worker._BREAK_OFF_S", 0.2)
    async with running("both", tiny, max_model_len=65536) as one:
        # A stream whose socket is full never sends its last line, whatever it is told.
        told: list[ErrorEvent] = []
        one.worker.enter()
        close = one.worker.keep(Job(_nothing(), lambda: told.append(CLOSED), told.append, time.monotonic() + 60))
        assert (await ask(one, "decode", deadline_s=0.0))[0] == 202
        await changed(one, "decode")
        assert [e.code for e in told] == ["draining", "closed"]
        close()
        assert one.worker.active == 0
        await one.empty()


async def test_to_both_nothing_has_to_end(tiny: Path) -> None:
    async with running("decode", tiny) as one:
        async with one.call("decode", body(prompt(20), max_new_tokens=300) | {"mode": "local"}) as events:
            await anext(events)
            status, said = await ask(one, "both")
            assert (status, said["role"], said["role_epoch"]) == (200, "both", 1)
            assert len(tokens_of(await one.lines("prefill", body(prompt(9)) | {"ticket": None}))) == 1
            assert [line async for line in events][-1] == {"type": "end", "finish_reason": "length"}
        assert (await ask(one, "both"))[1]["role_epoch"] == 1
        await one.empty()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"role": "router"}', b'{"role": "both", "deadline_s": -1}', b'{"role": "both", "x": 1}']
)
async def test_a_role_that_is_none_is_refused_by_name(tiny: Path, content: bytes) -> None:
    async with running("decode", tiny) as one:
        answer = await one.http.post("/internal/v1/role", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert (
            await one.http.post("/internal/v1/role", content=content, headers={"authorization": "x"})
        ).status_code == 401
        assert one.worker.role == "decode"
