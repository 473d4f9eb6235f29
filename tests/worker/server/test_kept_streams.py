"""Tests of streams that the bundled worker keeps: with its engine, over real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.client import Line, body, tokens_of
from tests.worker.server.rig import Running, prompt, running

from disagg_wire.protocol import STREAMS_PATH

NAME = "a" * 64
RESUME = {"name": NAME, "body": "b" * 64, "run": "f0", "began_ms": 5}


async def read(one: Running, leg: str = "decode", run: str = "f0") -> list[Line]:
    answer = await one.http.get(f"{STREAMS_PATH}/{NAME}", params={"run": run, "epoch": 0, "leg": leg})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def first_tokens(one: Running, request: dict[str, Any], n: int) -> list[Line]:
    """Return lines until there are `n` tokens, and leave."""
    got: list[Line] = []
    async with one.call("decode", request) as events:
        async for line in events:
            got.append(line)
            if len(tokens_of(got)) == n:
                return got
    raise AssertionError("it ended before that")


async def test_a_stream_that_lost_its_router_is_made_further_and_holds_nothing_after_that(tiny: Path) -> None:
    async with running("both", tiny) as one:
        request = body(prompt(20), max_new_tokens=60) | {"mode": "local"}
        whole = tokens_of(await one.lines("decode", request))
        await first_tokens(one, request | {"resume": RESUME}, 3)
        lines = await read(one)
        assert tokens_of(lines) == whole
        assert lines[-1] == {"type": "end", "finish_reason": "length"}
        await one.empty()
        assert await read(one) == lines


@pytest.mark.parametrize("stops", [True, False])
async def test_what_is_made_without_a_reader_ends_and_frees_its_blocks(tiny: Path, stops: bool) -> None:
    async with running("both", tiny, resume_unread_s=60.0 if stops else 0.05) as one:
        request = body(prompt(20), max_new_tokens=50_000)
        begun = await first_tokens(one, request | {"mode": "local", "resume": RESUME}, 3)
        if stops:
            assert (await one.http.delete(f"{STREAMS_PATH}/{NAME}?run=f0&epoch=0")).status_code == 204
        await one.empty()
        assert tokens_of(await read(one))[:3] == tokens_of(begun)


async def test_decode_says_which_token_prefill_has_made(tiny: Path) -> None:
    async with running("prefill", tiny) as p, running("decode", tiny) as d:
        request = body(prompt(20)) | {"resume": RESUME}
        whole = tokens_of(await d.lines("decode", body(prompt(20)) | {"mode": "local"}))
        made: list[Line] = []
        async with d.call("decode", request | {"mode": "remote"}) as events:
            ticket = (await anext(events))["ticket"]
            first = await p.lines("prefill", request | {"ticket": ticket})
            made += [line async for line in events]
        assert made[0]["first_token"] == first[0]["token"]
        assert tokens_of(await read(d)) == whole
        assert tokens_of(await read(p, "prefill")) == whole[:1]
        found = (await p.http.post(STREAMS_PATH, json={"names": [NAME]})).json()["streams"]
        assert found[0]["first"] == first[0]


async def test_only_whoever_has_the_key_may_ask(tiny: Path) -> None:
    async with running("both", tiny) as one:
        calls = [("POST", STREAMS_PATH), ("GET", f"{STREAMS_PATH}/{NAME}"), ("DELETE", f"{STREAMS_PATH}/{NAME}")]
        for method, path in calls:
            refused = await one.http.request(method, path, headers={"authorization": "Bearer x"})
            assert refused.status_code == 401
        for epoch in ("", "-1", "x", "9" * 30):
            assert (await one.http.get(f"{STREAMS_PATH}/{NAME}?run=f0&epoch={epoch}")).status_code == 404
            assert (await one.http.delete(f"{STREAMS_PATH}/{NAME}?run=f0&epoch={epoch}")).status_code == 204
        bodies: list[Any] = [{}, {"names": []}, {"names": ["x"]}, {"names": [NAME] * 257}, []]
        for wrong in bodies:
            assert (await one.http.post(STREAMS_PATH, json=wrong)).status_code == 400
        named = body(prompt(9)) | {"mode": "local", "resume": RESUME | {"run": "/"}}
        assert (await one.refused("decode", named))[0] == 400


async def test_without_a_time_nothing_is_kept(tiny: Path) -> None:
    async with running("both", tiny, resume_keep_s=0) as one:
        assert "resume" not in (await one.http.get("/internal/v1/info")).json()["features"]
        await one.lines("decode", body(prompt(9)) | {"mode": "local", "resume": RESUME})
        assert (await one.http.post(STREAMS_PATH, json={"names": [NAME]})).json() == {"streams": []}
