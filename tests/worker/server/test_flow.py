"""Tests of prefill and decode on two workers: they generate the same tokens as one process, and
every block is freed whichever side leaves or fails.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.client import KEY, Line, body, tokens_of
from tests.worker.server.rig import Running, pair, prompt, running
from tests.worker.transfer.rig import Peer

from disagg_protocol.ticket import Ticket, sign, token_hash, verify
from disagg_worker.transfer.frame_socket import FrameSocket
from disagg_worker.transfer.frames import FrameType, Header

GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {
    "temperature": 0.9,
    "top_p": 0.95,
    "seed": 1234,
    "repetition_penalty": 1.2,
    "logit_bias": [[5, 1.5]],
}


@pytest.mark.parametrize(
    ("bound", "integrity"), [(False, "mac"), (True, "crc32c")], ids=["a router or worker of 0.1.0", "crc32c"]
)
async def test_any_two_workers_pair(tiny: Path, bound: bool, integrity: str) -> None:
    async with pair(tiny, bound=bound, transfer_integrity=integrity) as p:
        await p.serves_the_next()


async def test_a_ticket_is_for_one_prefill_worker(tiny: Path) -> None:
    async with pair(tiny) as p, running("prefill", tiny) as other:
        other.worker.change_role("both", 1.0)  # It gets an incarnation of its own.
        request = body(prompt(40))
        end = {"mode": "remote", "prefill_incarnation": p.prefill.worker.incarnation}
        async with p.decode.call("decode", request | end) as events:
            ticket = (await anext(events))["ticket"]
            assert (ticket["prefill_incarnation"], ticket["integrity"]) == ("prefill/boot", "mac")
            status, error = await other.refused("prefill", request | {"ticket": ticket})
            assert (status, error["code"]) == (400, "ticket_refused")
            assert "prefill_incarnation" in error["message"]
        status, error = await p.decode.refused("decode", request | end | {"mode": "local"})
        assert (status, error["code"]) == (400, "invalid_request")
        assert "prefill_incarnation" in error["message"]
        await p.serves_the_next()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED | {"logprobs": 3}], ids=["greedy", "sampled"])
async def test_a_pair_gives_the_tokens_of_one_process(tiny: Path, sampling: dict[str, Any]) -> None:
    async with pair(tiny) as p, running("both", tiny) as one:
        for n in (1, 15, 16, 17, 100):
            request = body(prompt(n), **sampling, max_new_tokens=20)
            whole = await one.lines("decode", request | {"mode": "local"})
            first, rest = await p.generate(request)
            assert tokens_of(first + rest) == tokens_of(whole)
            assert [i for i, _ in tokens_of(whole)] == list(range(20))
            if "logprobs" in sampling:
                token = next(line for line in first if line["type"] == "token")
                assert len(token["top_logprobs"]) == 3
        await p.empty()
        await one.empty()


async def test_both_streams_tell_what_moved(tiny: Path) -> None:
    async with pair(tiny) as p:
        first, rest = await p.generate(body(prompt(40)))
        assert [line["type"] for line in first] == ["token", "transferred", "end"]
        assert [line["type"] for line in rest] == ["accepted", *["token"] * 7, "end"]
        moved = first[1]
        assert p.decode.worker.node is not None
        listener = p.decode.worker.node.listener
        assert moved["kv_bytes"] == rest[0]["kv_bytes"] == 3 * 16 * p.decode.worker.node.engine.layout.bytes_per_token
        assert moved["peer"] == f"127.0.0.1:{listener.port}"
        assert moved["interface"] == rest[0]["interface"] == "lo"
        assert moved["transfer_s"] >= 0
        assert moved["exposed_s"] >= 0
        received = (await p.decode.http.get("/metrics")).text
        assert f'disagg_kv_transfer_bytes_total{{direction="received"}} {float(moved["kv_bytes"])}' in received
        sent = (await p.prefill.http.get("/metrics")).text
        assert "disagg_kv_transfer_exposed_seconds_count 1.0" in sent
        for direction, page, other in (("received", received, sent), ("sent", sent, received)):
            counted = f'disagg_kv_transfer_seconds_count{{direction="{direction}"}} 1.0'
            assert counted in page
            assert counted not in other
            busy = re.findall(rf'disagg_kv_link_busy_seconds_total{{direction="{direction}"}} (\S+)', page)
            assert float(busy[0]) > 0


async def test_after_a_failover_the_stream_goes_on_where_it_was(tiny: Path) -> None:
    async with pair(tiny) as p:
        request = body(prompt(30), **SAMPLED, max_new_tokens=12)
        first, rest = await p.generate(request)
        emitted = tokens_of(first + rest)
        resumed = body(prompt(30) + [t for _, t in emitted[:5]], prompt_tokens=30, **SAMPLED, max_new_tokens=12) | {
            "epoch": 1
        }
        first, rest = await p.generate(resumed)
        assert tokens_of(first + rest) == emitted[5:]
        await p.empty()


async def test_many_at_once_get_what_each_gets_alone(tiny: Path) -> None:
    async with pair(tiny) as p:
        requests = [
            body(prompt(5 + 9 * i, start=i), **SAMPLED | {"seed": i}) | {"request_id": f"r{i}"} for i in range(12)
        ]
        alone = [await p.generate(r) for r in requests]
        together = await asyncio.gather(*[p.generate(r) for r in requests])
        assert [tokens_of(a + b) for a, b in together] == [tokens_of(a + b) for a, b in alone]
        await p.empty()


async def test_a_prefill_without_a_ticket_sends_nothing(tiny: Path) -> None:
    async with running("prefill", tiny) as prefill:
        lines = await prefill.lines("prefill", body(prompt(20), max_new_tokens=1) | {"ticket": None})
        assert [line["type"] for line in lines] == ["token", "end"]
        assert lines[-1]["finish_reason"] == "length"
        await prefill.empty()


async def test_a_first_token_that_ends_the_request_frees_the_reservation(tiny: Path) -> None:
    async with pair(tiny) as p:
        first, rest = await p.generate(body(prompt(20), max_new_tokens=1))
        assert [line["type"] for line in first] == ["token", "end"]
        assert first[-1]["finish_reason"] == "length"
        assert [(line["type"], line["code"]) for line in rest] == [("error", "transfer_failed")]
        await p.serves_the_next()


async def _ticket(events: Any) -> Line:
    line = await anext(events)
    assert line["type"] == "ticket"
    return dict(line["ticket"])


async def test_a_router_that_leaves_before_the_transfer_frees_the_reservation(tiny: Path) -> None:
    async with pair(tiny) as p:
        request = body(prompt(20))
        async with p.decode.call("decode", request | {"mode": "remote"}) as events:
            ticket = await _ticket(events)
            assert p.decode.load().blocks_leased > 0
        await p.decode.empty()
        lines = await p.prefill.lines("prefill", request | {"ticket": ticket})
        assert (lines[-1]["code"], lines[-1]["retryable"]) == ("transfer_failed", True)
        await p.serves_the_next()


async def test_a_router_that_leaves_during_the_transfer_frees_the_reservation(tiny: Path) -> None:
    async with pair(tiny) as p:
        async with p.decode.call("decode", body(prompt(20)) | {"mode": "remote"}) as events:
            ticket = verify(KEY, await _ticket(events))
            peer = await asyncio.to_thread(Peer, ticket)
            with peer:
                peer.send_begin()
                session = _session(p.decode, ticket)
                while session is not None and not _begun(p.decode, ticket):
                    await asyncio.sleep(0.002)
        await p.serves_the_next()


def _session(decode: Running, ticket: Ticket) -> object:
    assert decode.worker.node is not None
    return decode.worker.node.listener._waiting.get(ticket.transfer_id)


def _begun(decode: Running, ticket: Ticket) -> bool:
    return _session(decode, ticket) is None


async def test_a_router_that_leaves_while_tokens_flow_ends_the_sequence(tiny: Path) -> None:
    async with pair(tiny) as p:
        request = body(prompt(20), max_new_tokens=60000)
        async with p.decode.call("decode", request | {"mode": "remote"}) as events:
            await p.prefill.lines("prefill", request | {"ticket": await _ticket(events)})
            seen = [await anext(events) for _ in range(3)]
            assert [line["type"] for line in seen] == ["accepted", "token", "token"]
        await p.serves_the_next()


async def test_a_router_that_leaves_a_local_request_ends_the_sequence(tiny: Path) -> None:
    async with running("both", tiny) as one:
        async with one.call("decode", body(prompt(20), max_new_tokens=60000) | {"mode": "local"}) as events:
            assert (await anext(events))["path"] == "local"
            assert (await anext(events))["type"] == "token"
        await one.empty()


async def _deaf_decode(prefill: Running, server: socket.socket, request: Line) -> Line:
    """Return a valid ticket for a decode worker whose role the test plays."""
    assert prefill.worker.node is not None
    tokens = request["tokens"]
    compat = prefill.worker.node.compat
    port = server.getsockname()[1]
    return sign(
        KEY, Ticket("ab" * 16, "r1", 0, compat, "d/e", "127.0.0.1", port, len(tokens), token_hash(tokens), 30.0)
    ).to_json()


def _greet(server: socket.socket) -> socket.socket:
    server.settimeout(10)
    sock, _ = server.accept()
    link = FrameSocket(sock, 10)
    link.send(Header(FrameType.CHALLENGE), [b"c" * 32])
    raw, header = link.header()
    link.control(raw, header)
    return sock


async def test_a_router_that_leaves_a_prefill_whose_peer_is_stuck_frees_its_blocks_at_once(tiny: Path) -> None:
    async with running("prefill", tiny) as prefill:
        request = body(prompt(40))
        with socket.create_server(("127.0.0.1", 0)) as server:
            ticket = await _deaf_decode(prefill, server, request)
            async with prefill.call("prefill", request | {"ticket": ticket}) as events:
                stuck = await asyncio.to_thread(_greet, server)
                assert (await anext(events))["type"] == "token"
                await prefill.until(lambda load: load.blocks_leased > 0)
            with stuck:
                await prefill.empty()
        # The cancel has freed the blocks; the peer's silence would have been a failure.
        assert 'reason="transfer_failed"' not in (await prefill.http.get("/metrics")).text


async def test_a_decode_worker_that_dies_during_the_transfer_frees_the_prefills_blocks(tiny: Path) -> None:
    async with running("prefill", tiny) as prefill:
        request = body(prompt(40))
        with socket.create_server(("127.0.0.1", 0)) as server:
            ticket = await _deaf_decode(prefill, server, request)
            async with prefill.call("prefill", request | {"ticket": ticket}) as events:
                (await asyncio.to_thread(_greet, server)).close()
                lines = [line async for line in events]
        assert (lines[-1]["code"], lines[-1]["retryable"]) == ("transfer_failed", True)
        await prefill.empty()
        assert (
            'disagg_kv_transfer_failures_total{direction="sent",reason="transfer_failed"} 1.0'
            in (await prefill.http.get("/metrics")).text
        )


async def test_an_unused_ticket_expires(tiny: Path) -> None:
    async with pair(tiny, ticket_lifetime_s=0.2) as p:
        lines = await p.decode.lines("decode", body(prompt(20)) | {"mode": "remote"})
        assert [line["type"] for line in lines] == ["ticket", "error"]
        assert (lines[-1]["code"], lines[-1]["retryable"]) == ("ticket_expired", True)
        await p.empty()
        assert 'reason="ticket_expired"' in (await p.decode.http.get("/metrics")).text


async def test_a_sender_that_falls_silent_loses_the_reservation(tiny: Path) -> None:
    async with pair(tiny, transfer_idle_s=1.0) as p:
        async with p.decode.call("decode", body(prompt(20)) | {"mode": "remote"}) as events:
            ticket = verify(KEY, await _ticket(events))
            with await asyncio.to_thread(Peer, ticket) as peer:
                peer.send_begin()
                line = await anext(events)
                assert (line["code"], line["retryable"]) == ("transfer_failed", True)
        await p.serves_the_next()


async def test_a_deadline_ends_a_request(tiny: Path) -> None:
    async with running("both", tiny) as one:
        request = body(prompt(20), max_new_tokens=60000) | {"deadline_s": 0.3, "mode": "local"}
        lines = await one.lines("decode", request)
        assert (lines[-1]["type"], lines[-1]["code"]) == ("error", "deadline_exceeded")
        await one.empty()


async def test_a_worker_without_room_says_so_at_once_and_serves_later(tiny: Path) -> None:
    async with pair(tiny, max_running=1) as p:
        async with p.decode.call("decode", body(prompt(20)) | {"mode": "remote"}) as events:
            await _ticket(events)
            status, error = await p.decode.refused("decode", body(prompt(20)) | {"mode": "remote"})
            assert (status, error["code"], error["retryable"]) == (429, "no_capacity", True)
        assert "disagg_worker_reservations_refused_total 1.0" in (await p.decode.http.get("/metrics")).text
        await p.serves_the_next()


async def test_more_requests_than_may_run_and_wait_are_refused(tiny: Path) -> None:
    async with running("both", tiny, max_running=1, max_waiting=1) as one:
        long = body(prompt(20), max_new_tokens=60000) | {"mode": "local"}
        async with one.call("decode", long) as events:
            await anext(events)
            one.worker.enter()  # As if another request were read but not yet in the queue.
            status, error = await one.refused("decode", long)
            one.worker.leave()
            assert (status, error["code"]) == (429, "no_capacity")
        await one.empty()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mac": "0" * 64}, "ticket.mac"),
        ({"host": "192.0.2.1"}, "ticket.mac"),
        ({"port": 22}, "ticket.mac"),
        ({"mac": "é"}, "ticket.mac"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_a_prefill_connects_nowhere_but_where_a_valid_ticket_says(tiny: Path, change: Line, message: str) -> None:
    async with pair(tiny) as p:
        request = body(prompt(20))
        async with p.decode.call("decode", request | {"mode": "remote"}) as events:
            ticket = await _ticket(events)
            status, error = await p.prefill.refused("prefill", request | {"ticket": ticket | change})
            assert (status, error["code"], error["retryable"]) == (400, "ticket_refused", False)
            assert message in error["message"]
        await p.serves_the_next()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": prompt(20, start=3)}, "token_hash"),
        ({"tokens": prompt(21), "prompt_tokens": 21}, "token_hash"),
        ({"request_id": "other"}, "another request"),
        ({"epoch": 1}, "another request"),
    ],
)
async def test_a_ticket_serves_no_other_request(tiny: Path, change: Line, message: str) -> None:
    async with pair(tiny) as p:
        request = body(prompt(20))
        async with p.decode.call("decode", request | {"mode": "remote"}) as events:
            ticket = await _ticket(events)
            status, error = await p.prefill.refused("prefill", request | change | {"ticket": ticket})
            assert status == 400
            assert message in error["message"]
        await p.serves_the_next()


async def test_workers_of_another_layout_are_no_pair(tiny: Path) -> None:
    async with running("prefill", tiny, block_size_tokens=8) as prefill, running("decode", tiny) as decode:
        request = body(prompt(20))
        async with decode.call("decode", request | {"mode": "remote"}) as events:
            status, error = await prefill.refused("prefill", request | {"ticket": await _ticket(events)})
            assert status == 400
            assert "compat" in error["message"]
        await decode.empty()


async def test_a_connection_closed_right_after_the_request_leaks_nothing(tiny: Path) -> None:
    async with pair(tiny) as p:
        content = json.dumps(body(prompt(20)) | {"mode": "remote"}).encode()
        url = p.decode.http.base_url
        head = f"POST /internal/v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
        head += f"Authorization: {p.decode.http.headers['authorization']}\r\n\r\n"
        for cut in (0, 1, len(content) // 2):
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(head.encode() + content[: len(content) - cut])
            await writer.drain()
            writer.transport.abort()
        await p.serves_the_next()


async def test_requests_that_are_dropped_at_any_moment_leave_nothing_behind(tiny: Path) -> None:
    async with pair(tiny, max_running=128) as p:
        chance = random.Random(7)

        async def drop(i: int, after_events: int, prefill_too: bool) -> None:
            request = body(prompt(5 + i), max_new_tokens=200) | {"request_id": f"r{i}"}
            async with p.decode.call("decode", request | {"mode": "remote"}) as events:
                pushed = request | {"ticket": await _ticket(events)}
                async with p.prefill.call("prefill", pushed) as first:
                    if prefill_too:
                        return
                    async for _ in first:
                        pass
                for _ in range(after_events):
                    await anext(events)

        for _ in range(6):
            await asyncio.gather(*[drop(i, chance.randrange(20), chance.random() < 0.4) for i in range(12)])
        await p.serves_the_next()
