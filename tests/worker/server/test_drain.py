"""Tests of a worker that leaves: on notice, and at the end of its process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.client import Line, body
from tests.worker.server.rig import Running, pair, prompt, running

from disagg_protocol import departure
from disagg_protocol.process import Process
from disagg_wire import termination_log
from disagg_wire.drain_report import cut_of
from disagg_wire.protocol import (
    DRAIN_PATH,
    INFO_PATH,
    LAST_RESORT,
    LAST_RESORT_HEADER,
    ROLE_PATH,
    ROUTER_HEADER,
    ROUTER_NEEDS,
)

LOCAL = body(prompt(20), max_new_tokens=400) | {"mode": "local"}
LAST = {LAST_RESORT_HEADER: "yes"}


async def notice(one: Running, **fields: Any) -> tuple[int, Line]:
    answer = await one.http.post(DRAIN_PATH, json=fields)
    return answer.status_code, answer.json()


async def test_on_notice_it_takes_nothing_new_and_stays_ready_for_its_requests(tiny: Path) -> None:
    async with running("decode", tiny) as one:
        async with one.call("decode", LOCAL) as events:
            await anext(events)
            status, said = await notice(one)
            assert (status, said["state"], said["running_requests"]) == (202, "draining", 1)
            info = (await one.http.get(INFO_PATH)).json()
            assert (info["state"], info[LAST_RESORT]) == ("draining", False)
            assert (await one.http.get("/readyz")).text == "ready\n"
            assert (await one.refused("decode", LOCAL))[1]["code"] == "draining"
            refused = await one.http.post("/internal/v1/decode", json=LOCAL, headers=LAST)
            assert refused.status_code == 503  # others do its work
            assert [line async for line in events][-1] == {"type": "end", "finish_reason": "length"}
        await one.empty()
        assert (await notice(one))[0] == 200
        status, said = await notice(one, lease_s=0)  # called back
        assert (status, said["state"]) == (200, "ready")
        assert (await one.lines("decode", LOCAL))[-1]["type"] == "end"


async def test_a_notice_that_nobody_renews_is_over_by_itself(tiny: Path) -> None:
    async with running("decode", tiny) as one:
        status, said = await notice(one, lease_s=0.2)
        assert (status, said["state"]) == (200, "draining")
        async with asyncio.timeout(10):
            while (await one.http.get(INFO_PATH)).json()["state"] != "ready":
                await asyncio.sleep(0.02)
        assert (await one.lines("decode", LOCAL))[-1]["type"] == "end"


async def test_kv_that_is_on_its_way_still_comes(tiny: Path) -> None:
    """A decode worker that has given a ticket waits for it, and a prefill worker sends it."""
    async with pair(tiny) as both:
        request = body(prompt(40))
        async with both.decode.call("decode", request | {"mode": "remote"}) as events:
            ticket = (await anext(events))["ticket"]
            assert (await notice(both.decode))[0] == 202
            async with both.prefill.call("prefill", request | {"ticket": ticket}) as first:
                await anext(first)
                assert (await notice(both.prefill))[0] in (200, 202)
                assert [line async for line in first][-1]["finish_reason"] == "prefilled"
            assert [line async for line in events][-1]["type"] == "end"
        await both.empty()


@pytest.mark.parametrize("content", [b"{", b'{"lease_s": -1}', b'{"lease_s": 1, "x": 1}', b'{"lease_s": 1e9}'])
async def test_a_wrong_notice_is_refused_by_name(tiny: Path, content: bytes) -> None:
    async with running("decode", tiny) as one:
        answer = await one.http.post(DRAIN_PATH, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert (await one.http.post(DRAIN_PATH, json={}, headers={"authorization": "x"})).status_code == 401
        assert one.worker.state == "ready"


@pytest.mark.parametrize(("path", "order"), [(DRAIN_PATH, {}), (ROLE_PATH, {"role": "prefill"})])
async def test_a_worker_that_ends_or_loads_takes_no_orders(tiny: Path, path: str, order: Line) -> None:
    async with running("decode", tiny) as one:
        node, one.worker.node = one.worker.node, None
        answer = await one.http.post(path, json=order)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
        one.worker.node, one.worker.draining = node, True
        answer = await one.http.post(path, json=order)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setattr(termination_log, "PATH", file)
    return file


async def ending(one: Running, timeout_s: float) -> asyncio.Task[None]:
    """Begin the end of a worker as SIGTERM does."""
    task = asyncio.create_task(Process(one.worker, "127.0.0.1", 0, timeout_s)._drain())
    async with asyncio.timeout(10):
        while not one.worker.draining:
            await asyncio.sleep(0)
    return task


async def test_at_its_end_it_serves_who_has_nobody_else_and_then_is_gone(
    tiny: Path, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "LINGER_S", 25.0)
    async with running("decode", tiny) as one:
        needs = {ROUTER_HEADER: ROUTER_NEEDS}
        await one.http.get(INFO_PATH, headers=needs)
        end = await ending(one, 60.0)
        assert (await one.http.get(INFO_PATH, headers=needs)).json()[LAST_RESORT] is True
        assert (await one.refused("decode", LOCAL))[1]["code"] == "draining"
        assert not end.done()  # the router may still send something
        async with one.http.stream("POST", "/internal/v1/decode", json=LOCAL, headers=LAST) as answer:
            assert answer.status_code == 200
            assert "length" in [line async for line in answer.aiter_lines()][-1]
        one.worker.departure._needed_until_s = 0.0  # The router has not asked for a while.
        async with asyncio.timeout(20):
            await end
        assert (await one.http.get(INFO_PATH)).json()[LAST_RESORT] is False
        refused = await one.http.post("/internal/v1/decode", json=LOCAL, headers=LAST)
        assert refused.status_code == 503
        assert cut_of(left.read_text()) == 0


async def test_on_notice_it_ends_at_once_and_has_only_the_rest_of_its_time(
    tiny: Path, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "LINGER_S", 3600.0)
    async with running("decode", tiny) as one:
        await one.http.get(INFO_PATH, headers={ROUTER_HEADER: ROUTER_NEEDS})
        assert (await notice(one))[0] == 200
        async with asyncio.timeout(30):
            await (await ending(one, 60.0))
        assert cut_of(left.read_text()) == 0


async def test_what_is_cut_off_at_the_end_of_its_time_is_counted(tiny: Path, left: Path) -> None:
    async with running("decode", tiny) as one:
        long = body(prompt(20), max_new_tokens=60000) | {"mode": "local"}
        async with one.call("decode", long) as first, one.call("decode", long) as second:
            await asyncio.gather(anext(first), anext(second))
            async with asyncio.timeout(20):
                end = await ending(one, 0.5)
                for stream in (first, second):
                    last = [line async for line in stream][-1]
                    assert (last["type"], last["code"], last["retryable"]) == ("error", "draining", True)
                await end
        assert cut_of(left.read_text()) == 2
