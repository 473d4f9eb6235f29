"""Tests that an adapter keeps the streams of its engine as the bundled worker does."""

from __future__ import annotations

import json
from pathlib import Path

from tests.adapter.rig import EXPECTED, PROMPT, running, until
from tests.protocol.client import body, tokens_of

from disagg_wire.protocol import STREAMS_PATH

NAME = "a" * 64
RESUME = {"name": NAME, "body": "b" * 64, "run": "f0", "began_ms": 5}
PART = f"{STREAMS_PATH}/{NAME}"


async def test_a_stream_that_lost_its_router_is_made_further_and_read_on(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        async with one.call("decode", body(PROMPT) | {"mode": "local", "resume": RESUME}) as events:
            assert (await anext(events))["type"] == "accepted"
            assert (await anext(events))["index"] == 0
        found = (await one.http.post(STREAMS_PATH, json={"names": [NAME, "c" * 64]})).json()["streams"]
        assert [(s["run"], s["epoch"], s["leg"], s["body"]) for s in found] == [("f0", 0, "decode", "b" * 64)]
        answer = await one.http.get(PART, params={"run": "f0", "epoch": 0, "leg": "decode"})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert tokens_of(lines) == EXPECTED
        assert lines[-1] == {"type": "end", "finish_reason": "length"}
        await until(lambda: one.adapter.active == 0)
        await one.empty()
