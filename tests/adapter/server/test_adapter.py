"""Tests of an adapter as routers, the operator and the kubelet see it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.rig import EXPECTED, FILES, PROMPT, make_adapter, pair, running, served, until
from tests.fakes.adapter_engine import IDENTITY, FakeEngine
from tests.protocol.client import KEY, Line, body, tokens_of

from disagg_adapter.engines.contract import EngineFault, NotReady, Unusable
from disagg_protocol.ticket import Ticket, sign, token_hash
from disagg_wire import codes, series
from disagg_wire.engine_metrics.readings import Readings
from disagg_wire.protocol import DECODE_PATH


async def test_before_the_engine_serves_info_says_what_it_waits_for(tmp_path: Path) -> None:
    engine = FakeEngine(fault=NotReady("no weights yet"))
    adapter = make_adapter("decode", tmp_path, engine, pod_name="chat-0", revision="5d8f")
    async with served(adapter, engine) as one:
        watch = asyncio.create_task(adapter.monitor.run())
        await until(lambda: adapter.progress == "no weights yet")
        info = (await one.http.get("/internal/v1/info")).json()
        assert (info["state"], info["pod"], info["revision"], info["role"]) == ("starting", "chat-0", "5d8f", "decode")
        assert not {"model", "kv", "load", "problem"} & set(info)
        assert info["engine"] == {"name": "vllm", "version": ""}
        assert info["model_name"] == "tiny"
        ready = await one.http.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "starting: no weights yet\n")
        assert (await one.http.get("/healthz")).status_code == 200
        assert (await one.refused("decode", body(PROMPT) | {"mode": "local"}))[:2] == (503, codes.STARTING)
        assert "disagg_worker_kv_tokens" not in await one.samples()
        watch.cancel()


async def test_what_can_never_serve_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    engine = FakeEngine(fault=Unusable("UnknownEngineVersion", "vLLM 9.9 is not known"))
    adapter = make_adapter("decode", tmp_path, engine)
    async with served(adapter, engine) as one:
        watch = asyncio.create_task(adapter.monitor.run())
        await until(lambda: adapter.progress != "the engine has not been asked yet")
        info = (await one.http.get("/internal/v1/info")).json()
        assert info["problem"] == {"reason": "UnknownEngineVersion", "message": "vLLM 9.9 is not known"}
        ready = await one.http.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "starting: UnknownEngineVersion: vLLM 9.9 is not known\n")
        # To restart the engine would not help.
        assert (await one.http.get("/healthz")).status_code == 200
        watch.cancel()


async def test_a_serving_adapter_is_a_worker_like_any_other(tmp_path: Path) -> None:
    readings = Readings(kv_usage=0.25, itl_s_sum=3.0, itl_count=6.0, waiting=0.0)
    async with running("decode", tmp_path, FakeEngine(readings=readings), kv_interface="net1") as one:
        info = (await one.http.get("/internal/v1/info")).json()
        assert info["state"] == "ready"
        assert info["features"] == ["adapter", "digest", "first_token_from_decode", "pulse", "resume"]
        assert (info["model_name"], info["model"]["name"]) == ("tiny", "tiny")
        assert (info["model"]["digest"], info["model"]["revision"]) == ("digest", "")
        assert info["engine"] == {"name": "vllm", "version": "1.2.3"}
        assert info["model"]["adapters"] == ["polite"]
        assert info["model"]["adapter_digests"].keys() == {"polite"}
        assert (info["model"]["max_model_len"], info["model"]["vocab_size"]) == (1000, 2048)
        host, port = one.adapter.handover_address
        assert (info["kv"]["host"], info["kv"]["port"], info["kv"]["interface"]) == (host, port, "net1")
        assert (info["kv"]["transport"], info["kv"]["evidence"]) == ("tcp", "Configured")
        assert (info["kv"]["blocks_total"], info["kv"]["blocks_free"]) == (100, 75)
        assert info["load"]["room"]["free_tokens"] == 75 * 16
        assert info["load"]["room"]["step_s"] == 0.5
        assert (await one.http.get("/readyz")).text == "ready\n"
        tokenizer = await one.http.get("/internal/v1/tokenizer")
        assert tokenizer.status_code == 200


async def test_prefill_reports_no_room(tmp_path: Path) -> None:
    async with running("prefill", tmp_path) as one:
        assert "room" not in (await one.http.get("/internal/v1/info")).json()["load"]
        assert (await one.refused("decode", body(PROMPT) | {"mode": "local"}))[:2] == (503, codes.OTHER_ROLE)
        room = {"free_tokens": 1, "total_tokens": 1, "free_seats": 1, "total_seats": 1, "step_s": 0.1}
        assert (await one.http.post("/internal/v1/decode-room", json=room)).status_code == 204


async def test_a_draining_adapter_says_so(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        one.adapter.draining = True
        assert (await one.http.get("/internal/v1/info")).json()["state"] == "draining"
        assert (await one.http.get("/readyz")).status_code == 503
        assert (await one.refused("decode", body(PROMPT) | {"mode": "local"}))[:2] == (503, codes.DRAINING)


# ---- What is refused ----


async def test_a_role_is_kept_for_good(tmp_path: Path) -> None:
    async with running("decode", tmp_path) as one:
        answer = await one.http.post("/internal/v1/role", json={"role": "prefill"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "role: vllm keeps the role of its start, decode; replace the pod"
        same = await one.http.post("/internal/v1/role", json={"role": "decode"})
        assert (same.status_code, same.json()["role"]) == (200, "decode")


@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_bad_requests_name_the_field_and_hold_nothing(tmp_path: Path, role: str) -> None:
    async with running("both", tmp_path) as one:
        good: Line = body(PROMPT) | ({"mode": "local"} if role == "decode" else {"ticket": None})
        for change, named in (
            ({"adapter": "rude"}, "adapter: rude is not loaded here"),
            ({"sampling": good["sampling"] | {"structured": {"kind": "regex", "value": "a"}}}, "sampling.structured"),
            ({"prompt_tokens": 100}, "prompt_tokens"),
            ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ):
            status, code, message = await one.refused(role, good | change)
            assert (status, code) == (400, codes.INVALID_REQUEST)
            assert named in message
        long = good | {"tokens": [1] * 1000, "prompt_tokens": 997, "sampling": good["sampling"] | {"max_new_tokens": 9}}
        assert (await one.refused(role, long))[:2] == (413, codes.PROMPT_TOO_LONG)
        if role == "decode":
            end = {"mode": "remote", "prefill_incarnation": "p/e"}
            assert (await one.refused(role, good | end))[2].startswith("prefill_incarnation")
        assert one.engine.calls == []
        await one.empty()


async def test_a_ticket_of_another_pair_is_refused_before_the_engine_computes(tmp_path: Path) -> None:
    async with running("prefill", tmp_path) as one:
        good = Ticket(
            "ab" * 16, "r1", 0, one.adapter.compat, "d/boot", "127.0.0.1", 1, 40, token_hash(PROMPT), 30.0
        )  # fmt: skip
        for ticket in (
            sign(KEY, replace(good, compat="other")),
            sign(KEY, replace(good, request_id="r2")),
            sign(KEY, replace(good, token_hash=token_hash([1]))),
            sign(b"x" * 32, good),
        ):
            answer = await one.refused("prefill", body(PROMPT) | {"ticket": ticket.to_json()})
            assert answer[:2] == (400, codes.TICKET_REFUSED)
        assert one.engine.calls == []


async def test_loras_that_the_engine_has_reach_it(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        lines = await one.lines("decode", body(PROMPT) | {"mode": "local", "adapter": "polite", "tenant": "t"})
        assert tokens_of(lines) == EXPECTED
        ((_, work),) = one.engine.calls
        assert (work.adapter, work.tenant) == ("polite", "t")


async def test_a_full_engine_is_429_until_a_request_ends(tmp_path: Path) -> None:
    async with running("both", tmp_path, max_running=1, max_waiting=1) as one:
        one.engine.token_gate.shut()
        request = body(PROMPT) | {"mode": "local"}
        async with one.call("decode", request):
            await one.engine.token_gate.reached.wait()
            # No seat; then, with a prompt that needs none, no place at all.
            assert (await one.refused("decode", request))[:2] == (429, codes.NO_CAPACITY)
            one.engine.read_gate.shut()
            async with one.call("prefill", body(PROMPT, max_new_tokens=1) | {"ticket": None}):
                full = await one.refused("prefill", body(PROMPT) | {"ticket": None})
                assert full[:2] == (429, codes.NO_CAPACITY)
        one.engine.read_gate.open()
        one.engine.token_gate.open()
        await one.empty()
        assert (await one.samples())["disagg_worker_reservations_refused_total"] == 1
        assert tokens_of(await one.lines("decode", request)) == EXPECTED


async def test_no_blocks_is_429(tmp_path: Path) -> None:
    readings = Readings(kv_usage=0.99)
    async with running("decode", tmp_path, FakeEngine(readings=readings)) as one:
        status, code, message = await one.refused("decode", body(PROMPT) | {"mode": "remote"})
        assert (status, code) == (429, codes.NO_CAPACITY)
        assert "3 KV blocks are needed" in message or "KV blocks are needed, 1 are free" in message
        await until(lambda: one.adapter.active == 0)


# ---- Metrics ----


async def test_what_the_engine_does_not_tell_is_nan_and_never_0(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        samples = await one.samples()
        for name in (
            series.WORKER_PROMPT_TOKENS,
            series.WORKER_CACHED_TOKENS,
            series.WORKER_GENERATED_TOKENS,
            series.WORKER_PREEMPTIONS,
            series.ENGINE_TRANSFER_BYTES,
            series.ENGINE_TRANSFER_SECONDS,
            series.ENGINE_TRANSFERS,
            series.ENGINE_TRANSFER_FAILURES,
            series.ENGINE_HANDOVERS_EXPIRED,
            series.ENGINE_LATE_READS,
            series.WORKER_DECODE_STEP_SECONDS,
        ):
            assert math.isnan(samples[name]), name
        assert not [name for name in samples if name.startswith(series.WORKER_PROMPT_TOKENS_BY_SOURCE)]
        # What the adapter counts by itself is known.
        assert samples[series.WORKER_DECODE_STEP_SEQUENCES] == 0
        await one.lines("decode", body(PROMPT) | {"mode": "local"})
        samples = await one.samples()
        assert samples[series.WORKER_DECODE_STEP_SEQUENCES] == 8
        assert samples[series.WORKER_PREFILL_BATCH_TOKENS] == 40
        assert samples[series.WORKER_KV_CAPACITY_TOKENS] == 1600


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -3.0])
async def test_odd_readings_never_break_info(tmp_path: Path, odd: float) -> None:
    readings = Readings(waiting=odd, kv_usage=odd, itl_s_sum=odd, itl_count=2.0, transfer_bytes_total=odd)
    async with running("decode", tmp_path, FakeEngine(readings=readings)) as one:
        answer = await one.http.get("/internal/v1/info")
        assert answer.status_code == 200
        load = answer.json()["load"]
        assert (load["waiting_requests"], load["running_requests"], load["room"]["step_s"]) == (0, 0, 0.0)
        assert (await one.http.get("/metrics")).status_code == 200


async def test_what_the_engine_tells_is_passed_on(tmp_path: Path) -> None:
    readings = Readings(
        generated_tokens_total=8.0, transfer_bytes_total=5.0, prompt_tokens_by_source={"local_compute": 3.0}
    )
    async with running("decode", tmp_path, FakeEngine(readings=readings)) as one:
        samples = await one.samples()
        assert samples[series.WORKER_GENERATED_TOKENS] == 8
        assert samples[series.ENGINE_TRANSFER_BYTES] == 5
        assert samples[f'{series.WORKER_PROMPT_TOKENS_BY_SOURCE}{{source="local_compute"}}'] == 3
        # A role does only its own work: the other's is unknown.
        assert math.isnan(samples[series.WORKER_PREFILL_BATCHES])


# ---- The engine ends, or hangs ----


async def test_an_engine_that_restarts_is_another_worker_and_its_requests_go_on_elsewhere(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        before = one.adapter.incarnation
        one.engine.token_gate.shut()
        async with one.call("decode", body(PROMPT) | {"mode": "local"}) as events:
            await one.engine.token_gate.reached.wait()
            one.engine.identity = replace(IDENTITY, started="second start")
            last = [line async for line in events][-1]
        assert (last["code"], last["retryable"]) == (codes.INTERNAL, True)
        await until(lambda: one.adapter.serving)
        after = one.adapter.incarnation
        assert (before.split("/")[0], before) != (after, after)
        assert before.split("/")[0] == after.split("/")[0]
        one.engine.token_gate.open()
        await one.empty()
        assert (await one.lines("decode", body(PROMPT) | {"mode": "local"}))[-1]["type"] == "end"


async def test_an_engine_that_stops_answering_is_starting(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        one.engine.read_fault = EngineFault(codes.INTERNAL, "connection refused")
        await until(lambda: not one.adapter.serving)
        assert (await one.http.get("/internal/v1/info")).json()["state"] == "starting"
        assert (await one.http.get("/readyz")).status_code == 503
        assert (await one.http.get("/healthz")).status_code == 200
        one.engine.read_fault = None
        await until(lambda: one.adapter.serving)


async def test_a_hung_engine_is_503_on_both_pages_and_its_requests_go_on_elsewhere(tmp_path: Path) -> None:
    async with running("both", tmp_path, probe_after_s=0.2, probe_timeout_s=0.2) as one:
        one.engine.token_gate.shut()
        async with one.call("decode", body(PROMPT) | {"mode": "local"}) as events:
            await one.engine.token_gate.reached.wait()
            one.engine.probe_gate.shut()
            async with asyncio.timeout(30.0):
                last = [line async for line in events][-1]
        assert (last["code"], last["retryable"]) == (codes.INTERNAL, True)
        for path in ("/healthz", "/readyz"):
            answer = await one.http.get(path)
            assert answer.status_code == 503
            assert "no progress for" in answer.text
        # It is the engine that must be restarted, and not the adapter.
        assert (await one.http.get("/livez")).status_code == 200
        problem = (await one.http.get("/internal/v1/info")).json()["problem"]
        assert problem["reason"] == "EngineHung"
        assert one.engine.closed_early == ["generate"]
        one.engine.probe_gate.open()
        one.engine.token_gate.open()
        await until(lambda: one.adapter.serving)
        assert (await one.http.get("/healthz")).status_code == 200
        await one.empty()


async def test_cancelled_requests_make_the_adapter_ask_for_a_token(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        one.engine.token_gate.shut()
        async with one.call("decode", body(PROMPT) | {"mode": "local"}):
            await one.engine.token_gate.reached.wait()
        await until(lambda: one.engine.probes == 2)
        one.engine.token_gate.open()
        await one.lines("decode", body(PROMPT) | {"mode": "local"})
        one.engine.looked.clear()
        await one.engine.looked.wait()
        assert one.engine.probes == 2  # nothing was cancelled


async def test_pairs_of_other_versions_never_meet(tmp_path: Path) -> None:
    """What must be equal on both sides is in the compatibility hash."""
    changes: list[dict[str, Any]] = [
        {"version": "1.2.4"}, {"connector": "c-2"}, {"kv_dtype": "fp8"}, {"block_size_tokens": 32},
    ]  # fmt: skip
    found = set()
    for change in ({}, *changes):
        async with running("decode", tmp_path, FakeEngine(identity=replace(IDENTITY, **change))) as one:
            found.add(one.adapter.compat)
    settings: list[dict[str, Any]] = [{"tensor_ratio": "2:1"}, {"dtype": "float32"}]
    for setting in settings:
        async with running("decode", tmp_path, **setting) as one:
            found.add(one.adapter.compat)
    async with running("prefill", tmp_path, max_running=7) as one:
        assert one.adapter.compat in found
        one.adapter.files = replace(FILES, digest="another model")
        one.adapter._engine_changed()
        found.add(one.adapter.compat)
        one.adapter.settings = one.adapter.settings.model_copy(update={"engine": "sglang"})
        one.adapter._engine_changed()
        found.add(one.adapter.compat)
    assert len(found) == len(changes) + len(settings) + 3


async def test_bytes_that_moved_prove_a_transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from disagg_adapter.server import device_counters
    from disagg_adapter.server.device_counters import Received

    now = {"net1": 1000}
    monkeypatch.setattr(device_counters, "received", lambda: Received(dict(now), {}))
    engine = FakeEngine(readings=Readings(transfer_bytes_total=1e9))
    async with running("decode", tmp_path, engine, kv_interface="net1") as one:
        # What the engine moved before the adapter's start proves nothing.
        assert one.adapter.transport().evidence == "Configured"
        now["net1"] += 1 << 20
        engine.readings = Readings(transfer_bytes_total=1e9 + (1 << 20))
        await until(lambda: one.adapter.transport().evidence == "Proved")
        assert (one.adapter.transport().transport, one.adapter.transport().interface) == ("tcp", "net1")


# ---- The kubelet ----


async def test_drained_is_answered_when_nothing_needs_the_engine_any_more(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        one.engine.token_gate.shut()
        waits = asyncio.create_task(one.http.get("/drained"))
        async with one.call("decode", body(PROMPT) | {"mode": "local"}) as events:
            await one.engine.token_gate.reached.wait()
            one.adapter.draining = True
            assert not one.adapter.drained
            one.engine.token_gate.open()
            assert [line async for line in events][-1]["type"] == "end"
        assert (await waits).text == "drained\n"


async def test_drained_is_answered_at_once_when_the_engine_is_of_no_use(tmp_path: Path) -> None:
    async with running("both", tmp_path) as one:
        assert not one.adapter.drained
        one.adapter.monitor.health.hung = "no progress"
        assert (await one.http.get("/drained")).status_code == 200
    engine = FakeEngine(fault=NotReady("starting"))
    async with served(make_adapter("both", tmp_path, engine), engine) as one:
        assert (await one.http.get("/drained", headers={"authorization": ""})).status_code == 200
        assert (await one.http.get("/livez", headers={"authorization": ""})).text == "ok\n"
        one.adapter.failed = "no files"
        assert one.adapter.drained


async def test_prefills_engine_is_needed_until_decode_has_read(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.decode.engine.read_gate.shut()
        legs = asyncio.create_task(both.generate(body(PROMPT)))
        await both.decode.engine.read_gate.reached.wait()
        await both.prefill.engine.idle.wait()
        both.prefill.adapter.draining = True
        assert not both.prefill.adapter.drained
        both.decode.engine.read_gate.open()
        await legs
        await until(lambda: both.prefill.adapter.drained)
        answer = await both.prefill.http.post(DECODE_PATH, json={})
        assert answer.status_code == 503
