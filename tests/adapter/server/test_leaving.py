"""Tests of an adapter that leaves: on notice, and at the end of its pod."""

from __future__ import annotations

import time
from pathlib import Path

from tests.adapter.rig import PROMPT, running
from tests.protocol.client import body

from disagg_wire import codes
from disagg_wire.protocol import (
    DECODE_PATH,
    DRAIN_PATH,
    INFO_PATH,
    LAST_RESORT,
    LAST_RESORT_HEADER,
    ROUTER_HEADER,
    ROUTER_NEEDS,
)


async def test_the_engine_is_kept_while_a_router_that_has_nobody_else_may_need_it(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        needs = {ROUTER_HEADER: ROUTER_NEEDS}
        assert (await one.http.get(INFO_PATH, headers=needs)).json()[LAST_RESORT] is False
        one.adapter.end(60.0)
        assert (await one.http.get(INFO_PATH, headers=needs)).json()[LAST_RESORT] is True
        assert not one.adapter.drained
        last = {LAST_RESORT_HEADER: "yes"}
        answer = await one.http.post(DECODE_PATH, json=body(PROMPT) | {"mode": "local"}, headers=last)
        assert (answer.status_code, '"end"' in answer.text.splitlines()[-1]) == (200, True)
        one.adapter.departure.close()
        assert one.adapter.drained


async def test_on_notice_it_takes_nothing_new_and_stays_ready(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        assert (await one.http.post(DRAIN_PATH, json={"lease_s": 30})).status_code == 200
        assert (await one.http.get("/readyz")).status_code == 200
        assert (await one.http.get(INFO_PATH)).json()["state"] == "draining"
        assert (await one.refused("decode", body(PROMPT) | {"mode": "local"}))[:2] == (503, codes.DRAINING)
        assert not one.adapter.drained
        assert (await one.http.post(DRAIN_PATH, json={"lease_s": 0})).json()["state"] == "ready"
        one.adapter.departure.give_notice(30.0, time.monotonic())
        one.adapter.end(60.0)
        assert one.adapter.drained
