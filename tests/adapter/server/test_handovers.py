"""Tests of the door for hand-overs: a ticket opens it once, in time, and for its engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.rig import EXPECTED, PROMPT, Running, listening, running, until
from tests.fakes.adapter_engine import PARAMETERS
from tests.fakes.far_network import far_server, needs_network
from tests.protocol.client import KEY, Line, body, tokens_of

from disagg_adapter.engines.contract import EngineFault
from disagg_adapter.server.handover_message import HandOverMessage, sign_message
from disagg_adapter.server.handovers import HandOverDoor, HandOverSender
from disagg_protocol.ticket import Ticket, sign, verify
from disagg_wire import codes
from disagg_wire.protocol import HANDOVER_PATH, TRANSFER_HEADER


@dataclass
class Waiting:
    """A decode adapter that waits for the hand-over of one ticket."""

    one: Running
    ticket: Ticket
    events: AsyncIterator[Line]

    def message(self, **changes: Any) -> HandOverMessage:
        good = HandOverMessage(self.ticket, "prefill/boot", "vllm", dict(PARAMETERS), EXPECTED[0][1], 3, 0.0)
        return replace(good, **changes)

    async def refused(self, sent: Any) -> tuple[int, str]:
        answer = await self.one.hand_over(sent)
        return answer.status_code, answer.json()["error"]["code"]


@asynccontextmanager
async def waiting(folder: Path, **settings: Any) -> AsyncIterator[Waiting]:
    async with (
        running("decode", folder, **settings) as one,
        one.call("decode", body(PROMPT) | {"mode": "remote"}) as events,
    ):
        yield Waiting(one, verify(KEY, (await anext(events))["ticket"]), events)


async def test_a_hand_over_that_is_posted_twice_reaches_the_engine_once(tmp_path: Path) -> None:
    async with waiting(tmp_path) as decode:
        sent = sign_message(KEY, decode.message())
        answers = await asyncio.gather(*(decode.one.hand_over(sent) for _ in range(3)))
        assert sorted(answer.status_code for answer in answers) == [200, 400, 400]
        assert tokens_of([line async for line in decode.events]) == EXPECTED
        assert await decode.refused(sent) == (400, codes.TICKET_REFUSED)
        assert [name for name, _ in decode.one.engine.calls] == ["decode"]
        await decode.one.empty()


async def test_a_second_copy_while_the_engine_reads_is_refused(tmp_path: Path) -> None:
    async with waiting(tmp_path) as decode:
        decode.one.engine.read_gate.shut()
        sent = sign_message(KEY, decode.message())
        first = asyncio.create_task(decode.one.hand_over(sent))
        await decode.one.engine.read_gate.reached.wait()
        assert await decode.refused(sent) == (400, codes.TICKET_REFUSED)
        decode.one.engine.read_gate.open()
        assert (await first).json() == {"accepted": True}
        assert len(decode.one.engine.calls) == 1


def _another_ticket(m: HandOverMessage) -> HandOverMessage:
    return replace(m, ticket=sign(KEY, replace(m.ticket, transfer_id="00" * 16)))


def _changed_ticket(m: HandOverMessage) -> HandOverMessage:
    return replace(m, ticket=sign(KEY, replace(m.ticket, tokens=1)))


def _forged_ticket(m: HandOverMessage) -> HandOverMessage:
    return replace(m, ticket=replace(m.ticket, host="10.0.0.66"))


def _old(m: HandOverMessage) -> HandOverMessage:
    return replace(m, age_s=20.1)


def _other_engine(m: HandOverMessage) -> HandOverMessage:
    return replace(m, engine="sglang")


@pytest.mark.parametrize("change", [_another_ticket, _changed_ticket, _forged_ticket, _old, _other_engine])
async def test_what_is_not_for_this_ticket_engine_or_time_never_reaches_the_engine(tmp_path: Path, change: Any) -> None:
    async with waiting(tmp_path, lease_s=60.0) as decode:
        status, code = await decode.refused(sign_message(KEY, change(decode.message())))
        assert (status, code) == (400, codes.TICKET_REFUSED)
        assert decode.one.engine.calls == []
        # The ticket is as good as before.
        assert (await decode.one.hand_over(sign_message(KEY, decode.message()))).status_code == 200
        assert tokens_of([line async for line in decode.events]) == EXPECTED


async def test_a_hand_over_that_nobody_with_the_key_has_written(tmp_path: Path) -> None:
    async with waiting(tmp_path) as decode:
        good = sign_message(KEY, decode.message())
        for sent in (
            sign_message(b"x" * 32, decode.message()),
            good | {"mac": "0" * 64},
            good | {"parameters": {**PARAMETERS, "peer": "evil"}},
            good | {"first_token": 5},
        ):
            assert await decode.refused(sent) == (401, codes.UNAUTHORIZED)
        assert decode.one.engine.calls == []


@pytest.mark.parametrize("content", [b"", b"no json", b"[" * 100_000, b"\xff\xfe", b"x" * ((16 << 20) + 1), b"[]"])
async def test_what_is_no_message_is_refused(tmp_path: Path, content: bytes) -> None:
    async with waiting(tmp_path) as decode:
        host, port = decode.one.adapter.handover_address
        url = f"http://{host}:{port}/internal/v1/handover"
        answer = await decode.one.http.post(url, content=content, headers={TRANSFER_HEADER: decode.ticket.transfer_id})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in (codes.INVALID_REQUEST, codes.TICKET_REFUSED)
        assert decode.one.engine.calls == []


@pytest.mark.parametrize("header", [None, "", "0" * 32])
async def test_nobodys_body_is_read_who_does_not_know_a_ticket(tmp_path: Path, header: str | None) -> None:
    """A stranger's 16 MiB of JSON would cost seconds and hundreds of MiB."""
    async with waiting(tmp_path) as decode:
        name = "" if header is None else f"{TRANSFER_HEADER}: {header}\r\n"
        reader, writer = await asyncio.open_connection(*decode.one.adapter.handover_address)
        writer.write(f"POST {HANDOVER_PATH} HTTP/1.1\r\nhost: x\r\n{name}content-length: 16000000\r\n\r\n".encode())
        async with asyncio.timeout(30):
            assert b"400" in await reader.readline()  # although no byte of the body was sent
        writer.close()
        await writer.wait_closed()


async def test_the_body_of_a_ticket_is_read_once_at_a_time_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with waiting(tmp_path) as decode:
        monkeypatch.setattr("disagg_adapter.server.handovers._BODY_S", 1.0)
        name = f"{TRANSFER_HEADER}: {decode.ticket.transfer_id}"
        reader, writer = await asyncio.open_connection(*decode.one.adapter.handover_address)
        writer.write(f"POST {HANDOVER_PATH} HTTP/1.1\r\nhost: x\r\n{name}\r\ncontent-length: 9\r\n\r\n[".encode())
        await until(lambda: decode.one.adapter.door._reading == {decode.ticket.transfer_id})
        good = sign_message(KEY, decode.message())
        assert await decode.refused(good) == (400, codes.TICKET_REFUSED)
        async with asyncio.timeout(30):
            assert b"400" in await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert (await decode.one.hand_over(good)).status_code == 200
        assert tokens_of([line async for line in decode.events]) == EXPECTED


async def test_after_the_request_has_ended_its_ticket_is_refused(tmp_path: Path) -> None:
    async with running("decode", tmp_path) as one:
        async with one.call("decode", body(PROMPT) | {"mode": "remote"}) as events:
            ticket = verify(KEY, (await anext(events))["ticket"])
        await one.empty()
        late = HandOverMessage(ticket, "p", "vllm", dict(PARAMETERS), None, None, 0.0)
        assert (await one.hand_over(sign_message(KEY, late))).status_code == 400
        assert one.engine.calls == []


async def test_a_ticket_that_is_just_given_up_takes_nothing_any_more() -> None:
    """The request is cancelled, and its task has not had its turn yet."""
    door = HandOverDoor(KEY, "vllm", 20.0)
    ticket = sign(KEY, Ticket("ab" * 16, "r", 0, "c", "d/boot", "127.0.0.1", 9000, 3, "h", 30.0))
    expected = door.expect(ticket)
    expected.arrived.cancel()
    sender = HandOverSender(KEY)
    async with listening(door.app) as (host, port):
        there = sign(KEY, replace(ticket, host=host, port=port))
        door.expect(there).arrived.cancel()
        message = HandOverMessage(there, "p", "vllm", {}, None, None, 0.0)
        with pytest.raises(EngineFault, match="unknown, used or expired"):
            await sender.send(message, 5.0)
        await sender.close()


async def test_the_sender_says_who_does_not_answer() -> None:
    sender = HandOverSender(KEY)
    ticket = sign(KEY, Ticket("ab" * 16, "r", 0, "c", "d/boot", "127.0.0.1", 1, 3, "h", 30.0))
    with pytest.raises(EngineFault, match=r"hand-over to 127\.0\.0\.1") as found:
        await sender.send(HandOverMessage(ticket, "p", "vllm", {}, None, None, 0.0), 5.0)
    assert (found.value.code, found.value.retryable) == (codes.TRANSFER_FAILED, True)
    await sender.close()


async def test_a_decode_that_is_frozen_ends_the_senders_wait() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    sender = HandOverSender(KEY)
    async with listening(silent) as (host, port):  # type: ignore[arg-type]
        ticket = sign(KEY, Ticket("ab" * 16, "r", 0, "c", "d/boot", host, port, 3, "h", 30.0))
        with pytest.raises(EngineFault):
            await sender.send(HandOverMessage(ticket, "p", "vllm", {}, None, None, 0.0), 0.05)
        await sender.close()


@needs_network
async def test_a_network_that_is_cut_ends_the_senders_wait_long_before_the_lease() -> None:
    sender = HandOverSender(KEY)
    with far_server() as (server, cut):
        host, port = server.getsockname()
        ticket = sign(KEY, Ticket("ab" * 16, "r", 0, "c", "d/boot", host, port, 3, "h", 30.0))
        message = HandOverMessage(ticket, "p", "vllm", {}, None, None, 0.0)
        sending = asyncio.create_task(sender.send(message, 600.0))
        far, _ = await asyncio.to_thread(server.accept)
        with far:
            await asyncio.to_thread(far.recv, 1 << 16)
            cut()
            async with asyncio.timeout(30):
                with pytest.raises(EngineFault, match="hand-over to"):
                    await sending
    await sender.close()


async def test_an_answer_to_a_hand_over_is_bounded() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with contextlib.suppress(Exception):
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b" " * 65536, "more_body": True})

    sender = HandOverSender(KEY)
    async with listening(endless) as (host, port):  # type: ignore[arg-type]
        ticket = sign(KEY, Ticket("ab" * 16, "r", 0, "c", "d/boot", host, port, 3, "h", 30.0))
        with pytest.raises(EngineFault, match="over 1048576 bytes"):
            await sender.send(HandOverMessage(ticket, "p", "vllm", {}, None, None, 0.0), 20.0)
        await sender.close()


async def test_nothing_of_a_message_is_lost_on_its_way(tmp_path: Path) -> None:
    async with waiting(tmp_path) as decode:
        message = decode.message(parameters=json.loads('{"blocks": [[1, 2]], "peer": "ü"}'), cached_tokens=9)
        sender = HandOverSender(KEY)
        assert await sender.send(message, 5.0) > 0
        await sender.close()
        lines = [line async for line in decode.events]
        assert lines[1]["cached_tokens"] == 9
        assert decode.one.engine.taken[0].parameters == {"blocks": [[1, 2]], "peer": "ü"}
        await until(lambda: decode.one.adapter.active == 0)
