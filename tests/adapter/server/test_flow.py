"""Tests of two adapters that hand prompts over: the order of events, and every way to break off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.rig import EXPECTED, FILES, PROMPT, Line, Pair, body, pair, running, tokens_of, until
from tests.fakes.adapter_engine import PARAMETERS, token_of

from disagg_adapter.engines.contract import EngineFault, HandOver, Work
from disagg_protocol.requests import ELSEWHERE
from disagg_wire import codes


async def test_ticket_then_prefill_then_accepted_then_tokens(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        first, rest = await both.generate(body(PROMPT))
        assert [line["type"] for line in first] == ["transferred", "end"]
        assert first[-1] == {"type": "end", "finish_reason": "prefilled"}
        assert [line["type"] for line in rest] == ["ticket", "accepted", *["token"] * 8, "end"]
        assert tokens_of(rest) == EXPECTED
        assert rest[-1] == {"type": "end", "finish_reason": "length"}
        # The cache that counts is that of prefill, and it stands at the first token alone.
        assert [line.get("cached_tokens") for line in rest if line["type"] == "token"] == [5, *[None] * 7]
        accepted = rest[1]
        assert (accepted["path"], accepted["kv_bytes"]) == ("remote", 48 * 64)
        assert accepted["transport"] in ("rdma", "nvlink", "shm", "tcp")
        assert [(name, len(work.tokens)) for name, work in both.decode.engine.calls] == [("decode", 40)]
        assert both.decode.engine.taken[0].parameters == PARAMETERS
        await both.empty()
        samples = await both.decode.samples()
        assert samples['disagg_kv_transfer_bytes_total{direction="received"}'] == 48 * 64
        assert samples['disagg_kv_transfer_seconds_count{direction="received"}'] == 1
        assert samples['disagg_kv_transfer_bytes_total{direction="received"}'] == 48 * 64
        sent = await both.prefill.samples()
        assert sent['disagg_kv_transfer_seconds_count{direction="sent"}'] == 1
        assert samples["disagg_engine_other_first_tokens_total"] == 0


async def test_tokens_that_come_together_go_out_together_and_continue_after_emitted_ones(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.decode.engine.piece = 5
        _, rest = await both.generate(body([*PROMPT, 9, 9], prompt_tokens=40))
        assert tokens_of(rest) == [(2 + n, token_of([*PROMPT, 9, 9], n)) for n in range(6)]
        await both.serves_the_next()


async def test_another_first_token_than_prefills_is_counted(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        request = body(PROMPT)
        async with both.decode.call("decode", request | {"mode": "remote"}) as events:
            ticket = (await anext(events))["ticket"]
            original = both.prefill.engine.prefill

            def other(work: Any) -> Any:
                work.tokens[0] += 1
                return original(work)

            both.prefill.engine.prefill = other  # type: ignore[method-assign]
            await both.prefill.lines("prefill", request | {"ticket": ticket})
            assert tokens_of([line async for line in events]) == EXPECTED
        samples = await both.decode.samples()
        assert samples["disagg_engine_other_first_tokens_total"] == 1


async def test_an_engine_that_hands_over_before_it_computes(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.prefill.engine.hands_over_first = True
        first, rest = await both.generate(body(PROMPT))
        assert [line["type"] for line in first] == ["transferred", "end"]
        assert tokens_of(rest) == EXPECTED
        await both.serves_the_next()


@pytest.mark.parametrize("good", [True, False], ids=["taken", "refused"])
async def test_prefills_engine_is_told_when_decode_has_the_kv(tmp_path: Path, good: bool) -> None:
    async with pair(tmp_path) as both:
        original, told = both.prefill.engine.prefill, []

        async def telling(work: Work) -> AsyncGenerator[HandOver]:
            async with contextlib.aclosing(original(work)) as handovers:
                async for handover in handovers:
                    parameters = handover.parameters if good else {"rude": 1}
                    yield replace(handover, parameters=parameters, taken=lambda: told.append(len(told)))

        both.prefill.engine.prefill = telling  # type: ignore[method-assign]
        first, _ = await both.generate(body(PROMPT))
        assert first[-1]["type"] == ("end" if good else "error")
        assert told == ([0] if good else [])


async def test_prefill_that_fails_after_its_hand_over_ends_decode(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.prefill.engine.hands_over_first = True
        both.prefill.engine.prefill_gate.shut()
        both.decode.engine.read_gate.shut()

        async def fails() -> None:
            await both.decode.engine.read_gate.reached.wait()
            raise EngineFault(codes.INTERNAL, "out of memory")

        both.prefill.engine.prefill_gate.enter = fails  # type: ignore[method-assign]
        first, rest = await both.generate(body(PROMPT))
        assert (first[-1]["code"], first[-1]["message"]) == (codes.INTERNAL, "out of memory")
        assert (rest[-1]["code"], rest[-1]["retryable"]) == (codes.TRANSFER_FAILED, True)
        assert both.decode.engine.closed_early == ["decode"]
        await both.empty()


async def test_decode_that_refuses_ends_prefill_at_once(tmp_path: Path) -> None:
    """Else an engine that waits for decode would wait for its own timeout."""
    async with pair(tmp_path) as both:
        both.prefill.engine.hands_over_first = True
        both.prefill.engine.prefill_gate.shut()
        both.prefill.engine.handover = {"odd": 1}
        first, rest = await both.generate(body(PROMPT))
        assert first[-1]["code"] == rest[-1]["code"] == codes.TRANSFER_FAILED
        assert both.decode.engine.calls == []
        assert both.prefill.engine.closed_early == ["prefill"]
        assert (await both.prefill.samples())["disagg_engine_handovers_stranded_total"] == 1
        await both.empty()


async def test_a_bad_parameter_never_reaches_the_engine(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.prefill.engine.handover = {**PARAMETERS, "host": "10.0.0.1"}
        first, rest = await both.generate(body(PROMPT))
        assert "parameters" in rest[-1]["message"]
        assert "parameters" in first[-1]["message"]
        assert both.decode.engine.calls == []
        both.prefill.engine.handover = PARAMETERS
        await both.serves_the_next()


async def test_prefills_adapter_dies_while_decode_waits_for_the_kv(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.decode.engine.read_gate.shut()
        request = body(PROMPT)
        async with both.decode.call("decode", request | {"mode": "remote"}) as events:
            ticket = (await anext(events))["ticket"]
            leg = asyncio.create_task(both.prefill.lines("prefill", request | {"ticket": ticket}))
            await both.decode.engine.read_gate.reached.wait()
            await both.prefill.adapter.sender.close()  # its sockets, as the end of the process closes them
            last = [line async for line in events][-1]
        assert (last["code"], last["retryable"]) == (codes.TRANSFER_FAILED, True)
        assert (await leg)[-1]["code"] == codes.TRANSFER_FAILED
        assert both.decode.engine.closed_early == ["decode"]
        both.prefill.adapter.sender._session = None
        await both.serves_the_next()


async def test_a_frozen_read_ends_at_the_timeout_and_closes_the_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tmp_path) as both:
        both.decode.engine.read_gate.shut()
        with monkeypatch.context() as only_here:
            only_here.setattr(both.decode.adapter, "transfer_timeout_s", lambda kv_bytes: 0.1)
            first, rest = await both.generate(body(PROMPT))
        assert (rest[-1]["code"], rest[-1]["message"]) == (codes.TRANSFER_FAILED, "no KV within 0.1 s")
        assert rest[-1]["retryable"]
        assert first[-1]["code"] == codes.TRANSFER_FAILED
        assert both.decode.engine.closed_early == ["decode"]
        samples = await both.decode.samples()
        assert samples['disagg_kv_transfer_failures_total{direction="received",reason="transfer_failed"}'] == 1
        await both.serves_the_next()


async def test_a_ticket_expires(tmp_path: Path) -> None:
    async with running("decode", tmp_path, ticket_lifetime_s=0.05) as decode:
        lines = await decode.lines("decode", body(PROMPT) | {"mode": "remote"})
        assert [line["type"] for line in lines] == ["ticket", "error"]
        assert lines[-1]["code"] == codes.TICKET_EXPIRED
        await decode.empty()


async def test_what_comes_with_a_ticket_is_read_within_the_lease(tmp_path: Path) -> None:
    """The lease begins after the ticket, and prefill may be frozen before it hands over."""
    async with (
        running("decode", tmp_path, lease_s=7.0) as decode,
        decode.call("decode", body(PROMPT) | {"mode": "remote"}) as events,
    ):
        lifetime_s = (await anext(events))["ticket"]["lifetime_s"]
        assert lifetime_s == 3.5
        assert lifetime_s + decode.adapter.transfer_timeout_s(0) < 7.0


@contextlib.asynccontextmanager
async def _held(both: Pair, phase: str) -> Any:
    """Yield the events of both legs, held in a phase, and a function that waits for it."""
    engine = both.prefill.engine if phase == "prefill" else both.decode.engine
    gates = {"prefill": engine.prefill_gate, "read": engine.read_gate, "tokens": engine.token_gate}
    if phase in gates:
        gates[phase].shut()
    request = body(PROMPT)
    async with both.decode.call("decode", request | {"mode": "remote"}) as decoding:
        ticket = (await anext(decoding))["ticket"]
        if phase == "ticket":
            yield decoding, None
            return
        async with both.prefill.call("prefill", request | {"ticket": ticket}) as prefilling:
            await gates[phase].reached.wait()
            yield decoding, prefilling


@pytest.mark.parametrize("phase", ["ticket", "prefill", "read", "tokens"])
async def test_both_legs_are_cancelled(tmp_path: Path, phase: str) -> None:
    async with pair(tmp_path) as both:
        async with _held(both, phase):
            pass
        await both.empty()
        early = {"ticket": [], "prefill": ["prefill"], "read": ["decode"], "tokens": ["decode"]}[phase]
        assert both.prefill.engine.closed_early + both.decode.engine.closed_early == early
        await both.serves_the_next()


@pytest.mark.parametrize("phase", ["prefill", "read"])
async def test_decodes_leg_alone_is_cancelled_and_prefill_is_told(tmp_path: Path, phase: str) -> None:
    async with pair(tmp_path) as both:
        async with _held(both, phase) as (decoding, prefilling):
            await decoding.aclose()
            interrupts = both.decode.adapter.interruptions()
            assert len(interrupts) == 1
            interrupts[0](ELSEWHERE)
            await both.decode.engine.idle.wait()
            both.prefill.engine.prefill_gate.open()
            last = [line async for line in prefilling][-1]
            assert last["code"] == codes.TRANSFER_FAILED
        assert (await both.prefill.samples())["disagg_engine_handovers_stranded_total"] == 1
        await both.serves_the_next()


async def test_prefills_leg_alone_is_cancelled_and_decode_is_told(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.decode.engine.read_gate.shut()
        request = body(PROMPT)
        async with both.decode.call("decode", request | {"mode": "remote"}) as decoding:
            ticket = (await anext(decoding))["ticket"]
            async with both.prefill.call("prefill", request | {"ticket": ticket}):
                await both.decode.engine.read_gate.reached.wait()
            last = [line async for line in decoding][-1]
            assert last["message"] == "prefill gave the hand-over up"
        assert (await both.prefill.samples())["disagg_engine_handovers_stranded_total"] == 1
        await both.serves_the_next()


@pytest.mark.parametrize("phase", ["prefill", "read", "tokens"])
async def test_a_drain_that_breaks_off_tells_both_clients_to_go_on_elsewhere(tmp_path: Path, phase: str) -> None:
    async with pair(tmp_path) as both:
        async with _held(both, phase) as (decoding, prefilling):
            for one in (both.prefill, both.decode):
                for interrupt in one.adapter.interruptions():
                    interrupt(ELSEWHERE)
            assert [line async for line in decoding][-1]["code"] == codes.DRAINING
            if phase != "tokens":
                assert [line async for line in prefilling][-1]["code"] == codes.DRAINING
        await both.serves_the_next()


async def test_an_interrupt_closes_the_engines_generator_before_the_stream_has_ended(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        one.engine.token_gate.shut()
        async with one.call("decode", body(PROMPT) | {"mode": "local"}):
            await one.engine.token_gate.reached.wait()
            (interrupt,) = one.adapter.interruptions()
            interrupt(ELSEWHERE)
            await asyncio.wait_for(one.engine.idle.wait(), 30)
            assert one.engine.closed_early == ["generate"]
        await one.empty()


@pytest.mark.parametrize("mode", ["local", "remote"])
async def test_the_deadline_ends_a_request(tmp_path: Path, mode: str) -> None:
    async with running("both", tmp_path) as one:
        one.engine.token_gate.shut()
        lines = await one.lines("decode", body(PROMPT) | {"mode": mode, "deadline_s": 0.1})
        assert (lines[-1]["code"], lines[-1]["retryable"]) == (codes.DEADLINE_EXCEEDED, False)
        await one.empty()


async def test_local_runs_send_every_token(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        lines = await one.lines("decode", body(PROMPT) | {"mode": "local"})
        assert [line["type"] for line in lines] == ["accepted", *["token"] * 8, "end"]
        assert tokens_of(lines) == EXPECTED
        assert lines[1]["cached_tokens"] == 7
        alone = await one.lines("prefill", body(PROMPT, max_new_tokens=1) | {"ticket": None})
        assert [line["type"] for line in alone] == ["token", "end"]
        await one.empty()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_engine_that_refuses_late_says_so_in_the_stream(tmp_path: Path, role: str) -> None:
    async with running("both", tmp_path) as one:

        async def refuses() -> None:
            raise EngineFault(codes.INVALID_REQUEST, "logprobs: too many", retryable=False)

        one.engine.read_gate.enter = refuses  # type: ignore[method-assign]
        request: Line = body(PROMPT, max_new_tokens=1)
        lines = await one.lines(role, request | ({"ticket": None} if role == "prefill" else {"mode": "local"}))
        wanted = {"type": "error", "code": codes.INVALID_REQUEST, "message": "logprobs: too many", "retryable": False}
        assert lines[-1] == wanted
        await one.empty()


async def test_a_fault_of_the_adapter_itself_ends_the_request_and_frees_all(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:

        async def breaks() -> None:
            raise RuntimeError("odd")

        one.engine.read_gate.enter = breaks  # type: ignore[method-assign]
        lines = await one.lines("decode", body(PROMPT) | {"mode": "local"})
        assert (lines[-1]["code"], lines[-1]["retryable"]) == (codes.INTERNAL, True)
        await one.empty()


async def test_the_room_of_a_job_that_never_ran_is_given_back(tmp_path: Path) -> None:
    async with running("decode", tmp_path) as one:
        from disagg_protocol.bodies import DecodeRequest

        request = DecodeRequest.model_validate(body(PROMPT) | {"mode": "remote"})
        job = await one.adapter.start_decode(request, None)
        assert len(one.adapter.ledger) == 1
        job.close()
        job.close()
        assert len(one.adapter.ledger) == 0
        await until(lambda: one.adapter.door._expected == {})
        assert one.engine.calls == []


async def test_the_room_of_a_cancelled_request_is_free_when_the_engine_is_rid_of_it(tmp_path: Path) -> None:
    """Otherwise, requests that are cancelled while their KV is read would pile up in the engine."""
    async with pair(tmp_path, max_running=1) as both:
        decode, gone = both.decode, list[Callable[[], None]]()
        decode.engine.when_gone = lambda request_id, then: gone.append(then)  # type: ignore[method-assign]
        decode.engine.read_gate.shut()
        legs = asyncio.create_task(both.generate(body(PROMPT)))
        await decode.engine.read_gate.reached.wait()
        legs.cancel()
        await asyncio.wait({legs})
        await until(lambda: bool(gone))
        refused = await decode.refused("decode", body(PROMPT) | {"mode": "remote"})
        assert refused[:2] == (429, codes.NO_CAPACITY)
        gone.pop()()
        del decode.engine.when_gone
        await both.serves_the_next()


async def test_a_model_whose_files_do_not_tell_the_size_of_its_kv_moves_an_unknown_number_of_bytes(
    tmp_path: Path,
) -> None:
    """With 0, routers would take the pair for one that moves nothing."""
    async with pair(tmp_path) as both:
        for one in (both.prefill, both.decode):
            one.adapter.files = replace(FILES, kv_bytes_per_token=0)
        first, rest = await both.generate(body(PROMPT))
        assert (first[0]["type"], first[0]["kv_bytes"]) == ("transferred", None)
        assert (rest[1]["type"], rest[1]["kv_bytes"]) == ("accepted", None)
