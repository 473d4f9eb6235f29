"""Tests of transfers in which decode holds the start of the prompt: only the rest is sent, and what
is held is that of these tokens, of this tenant and of these weights, or is not used at all.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.client import KEY, Line, body, tokens_of
from tests.worker.server.rig import Pair, pair, prompt, running
from tests.worker.transfer.bound_rig import Lane

from disagg_protocol.ticket import Ticket, sign, verify

SIZE = 16


def _blocks(p: Pair, kv_bytes: int) -> float:
    assert p.decode.worker.node is not None
    return kv_bytes / (SIZE * p.decode.worker.node.engine.layout.bytes_per_token)


async def _sent(p: Pair, request: Line) -> tuple[list[tuple[int, int]], float]:
    """Return the tokens of a request, and how many blocks were sent for it."""
    first, rest = await p.generate(request)
    assert (first[-1]["finish_reason"], rest[-1]["finish_reason"]) == ("prefilled", "length")
    moved = next(line for line in first if line["type"] == "transferred")
    assert moved["kv_bytes"] == rest[0]["kv_bytes"]
    return tokens_of(first + rest), _blocks(p, moved["kv_bytes"])


async def _alone(folder: Path, request: Line) -> list[tuple[int, int]]:
    async with running("both", folder, prefix_cache=False) as one:
        return tokens_of(await one.lines("decode", request | {"mode": "local"}))


async def _counted(p: Pair, name: str) -> float:
    page = (await p.decode.http.get("/metrics")).text
    return next(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + " "))


def _asks(p: Pair, request: Line) -> Line:
    return request | {"mode": "remote", "prefill_incarnation": p.prefill.worker.incarnation}


@pytest.mark.parametrize("n", [160, 161, 175], ids=["whole blocks", "a token more", "a token less"])
async def test_a_prompt_that_is_repeated_moves_nothing_but_its_last_block(tiny: Path, n: int) -> None:
    request = body(prompt(n))
    wanted = await _alone(tiny, request)
    async with pair(tiny) as p:
        assert await _sent(p, request) == (wanted, -(-n // SIZE))
        await p.empty()
        assert await _sent(p, request) == (wanted, 1)
        await p.empty()
        held = (n - 1) // SIZE
        assert await _counted(p, "disagg_kv_transfer_saved_blocks_total") == held
        assert _blocks(p, int(await _counted(p, "disagg_kv_transfer_saved_bytes_total"))) == held
        by_source = 'disagg_worker_prompt_tokens_by_source_total{source="%s"}'
        assert await _counted(p, by_source % "local_cache_hit") == held * SIZE
        assert await _counted(p, by_source % "external_kv_transfer") == 2 * n - held * SIZE


async def test_the_second_turn_of_a_chat_moves_only_what_is_new(tiny: Path) -> None:
    first = body(prompt(600), max_new_tokens=40)
    async with pair(tiny) as p:
        tokens, _ = await _sent(p, first)
        turn = [*first["tokens"], *(token for _, token in tokens), *prompt(24, start=5)]
        answer, sent = await _sent(p, body(turn))
        assert sent < 0.1 * len(turn) / SIZE
        await p.empty()
    assert answer == await _alone(tiny, body(turn))


@pytest.mark.parametrize("bound", [True, False], ids=["another tenant", "frames of version 1"])
async def test_who_must_not_or_cannot_use_it_gets_everything_sent(tiny: Path, bound: bool) -> None:
    request = body(prompt(100))
    async with pair(tiny, bound=bound) as p:
        tokens, _ = await _sent(p, request)
        other = request | ({"tenant": "other"} if bound else {})
        assert await _sent(p, other) == (tokens, 7)
        await p.empty()


async def test_what_was_evicted_is_sent_again(tiny: Path) -> None:
    request = body(prompt(100))
    small = {"kv_cache_bytes": 1 << 20, "max_model_len": 512}
    async with pair(tiny, **small) as p:
        tokens, _ = await _sent(p, request)
        total = p.decode.load().blocks_total
        for salt in range(2, 4 + total * SIZE // 400):
            await _sent(p, body(prompt(400, start=salt)))
        assert await _sent(p, request) == (tokens, 7)


async def test_what_is_held_for_a_transfer_is_not_evicted_before_it(tiny: Path) -> None:
    request = body(prompt(100))
    small = {"kv_cache_bytes": 1 << 20, "max_model_len": 512}
    async with pair(tiny, **small) as p:
        tokens, _ = await _sent(p, request)
        total = p.decode.load().blocks_total
        async with p.decode.call("decode", _asks(p, request)) as events:
            ticket = (await anext(events))["ticket"]
            assert ticket["held_blocks"] == 6
            for salt in range(2, 4 + total * SIZE // 400):
                await _sent(p, body(prompt(400, start=salt)) | {"request_id": f"r{salt}"})
            lines = await p.prefill.lines("prefill", request | {"ticket": ticket})
            assert _blocks(p, lines[1]["kv_bytes"]) == 1
            assert tokens_of(lines + [line async for line in events]) == tokens
        await p.empty()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_hash": "00" * 32}, "held_hash"),
        ({"held_blocks": 5}, "held_hash"),
        ({"held_blocks": 7}, "held_blocks"),
        ({"held_hash": ""}, "held_blocks"),
        ({"held_blocks": -1}, "held_blocks"),
    ],
)
async def test_a_start_of_other_tokens_or_weights_is_refused(tiny: Path, change: dict[str, Any], message: str) -> None:
    request = body(prompt(100))
    async with pair(tiny) as p:
        await _sent(p, request)
        async with p.decode.call("decode", _asks(p, request)) as events:
            ticket = verify(KEY, (await anext(events))["ticket"])
            values = ticket.to_json() | change
            forged = sign(KEY, Ticket(**values)).to_json()
            status, error = await p.prefill.refused("prefill", request | {"ticket": forged})
            assert (status, error["code"]) == (400, "ticket_refused")
            assert message in error["message"]
        await p.serves_the_next()


@pytest.mark.parametrize("leaves", ["the router", "prefill"])
async def test_who_leaves_leaves_no_pinned_block(tiny: Path, leaves: str) -> None:
    request = body(prompt(100))
    async with pair(tiny) as p:
        tokens, _ = await _sent(p, request)
        async with p.decode.call("decode", _asks(p, request)) as events:
            ticket = verify(KEY, (await anext(events))["ticket"])
            if leaves == "prefill":
                lane = await asyncio.to_thread(Lane, ticket, incarnation=p.prefill.worker.incarnation)
                await asyncio.to_thread(lane.begin)
                lane.reset()
                assert (await anext(events))["code"] == "transfer_failed"
        await p.empty()
        assert await _sent(p, request) == (tokens, 1)
        await p.empty()


async def test_a_prompt_of_which_little_is_missing_is_prefilled_by_decode(tiny: Path) -> None:
    request = body(prompt(100))
    async with pair(tiny) as p:
        little = _asks(p, request) | {"local_up_to_tokens": 20}
        async with p.decode.call("decode", little) as events:
            assert (await anext(events))["type"] == "ticket"  # Nothing of it is here.
        tokens, _ = await _sent(p, request)
        lines = await p.decode.lines("decode", little)
        assert (lines[0]["path"], lines[0]["kv_bytes"], lines[1]["cached_tokens"]) == ("local", 0, 96)
        assert tokens_of(lines) == tokens
        grown = body(prompt(120))
        async with p.decode.call("decode", _asks(p, grown) | {"local_up_to_tokens": 20}) as events:
            assert (await anext(events))["type"] == "ticket"  # 24 tokens are missing.
        assert tokens_of(await p.decode.lines("decode", _asks(p, grown) | {"local_up_to_tokens": 24}))
        by_source = 'disagg_worker_prompt_tokens_by_source_total{source="%s"}'
        assert await _counted(p, by_source % "local_rest") == 4 + 24  # By choice, so nothing is repeated.
        assert await _counted(p, by_source % "local_compute") == 0
        assert await _counted(p, "disagg_worker_prompt_tokens_total") == 4 + 24
        await p.empty()
        alone = await p.decode.lines("decode", body(prompt(50, start=3)) | {"mode": "local"})
        assert await _counted(p, by_source % "local_rest") == 4 + 24
        assert (alone[0]["path"], await _counted(p, by_source % "local_compute")) == ("local", 50)


@pytest.mark.parametrize("n", [96, 97, 111], ids=["whole blocks", "a token more", "a token less"])
async def test_what_decode_prefills_goes_on_as_if_it_had_been_sent(tiny: Path, n: int) -> None:
    """Ask three times: as before, as after a failover, and not to the end."""
    request = body(prompt(n), max_new_tokens=24)
    async with pair(tiny) as p:
        tokens, _ = await _sent(p, request)
        little = _asks(p, request) | {"local_up_to_tokens": 64}
        lines = await p.decode.lines("decode", little)
        held = SIZE * ((n - 1) // SIZE)
        assert (lines[0]["path"], lines[1]["cached_tokens"], tokens_of(lines)) == ("local", held, tokens)
        emitted = [token for _, token in tokens[:10]]
        resumed = await p.decode.lines("decode", little | {"tokens": [*request["tokens"], *emitted]})
        assert (resumed[0]["path"], tokens_of(resumed)) == ("local", tokens[10:])
        async with p.decode.call("decode", little) as events:
            assert (await anext(events))["path"] == "local"
        await p.empty()


async def test_the_limit_is_only_for_transfers(tiny: Path) -> None:
    async with running("decode", tiny) as decode:
        request = body(prompt(20)) | {"mode": "local", "local_up_to_tokens": 20}
        status, error = await decode.refused("decode", request)
        assert (status, error["code"]) == (400, "invalid_request")
        assert "local_up_to_tokens" in error["message"]
