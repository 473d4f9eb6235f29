"""Tests of the worker's HTTP server: authorisation, identity and refusals."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Route
from tests.protocol.client import KEY, body, tokens_of
from tests.worker.server.rig import make_settings, prompt, running, serve

from disagg_protocol import body_errors
from disagg_protocol.bodies import Line
from disagg_protocol.event_stream import NdjsonResponse
from disagg_wire import spent_time
from disagg_worker.model.checkpoint import Checkpoint
from disagg_worker.server.worker import Worker

FIELDS = ["first_token_within_s", "digest", "prefill_incarnation", "local_up_to_tokens", "pulse", "resume"]

PROTECTED = [("GET", "info"), ("GET", "tokenizer"), ("POST", "decode"), ("POST", "prefill")]


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer 00", "Basic abc", "bearer é"])
async def test_everything_internal_needs_the_clusters_key(tiny: Path, given: str | None) -> None:
    async with serve(Worker(make_settings("both", tiny), KEY, "u/b")) as http:
        del http.headers["authorization"]
        headers = {} if given is None else {"authorization": given.encode("latin-1")}
        for method, name in PROTECTED:
            answer = await http.request(method, f"/internal/v1/{name}", headers=headers)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        for name in ("healthz", "metrics"):
            assert (await http.get(f"/{name}")).status_code == 200


async def test_while_the_model_loads_it_is_healthy_and_not_ready(tiny: Path) -> None:
    async with serve(Worker(make_settings("both", tiny), KEY, "u/b")) as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "starting\n")
        info = (await http.get("/internal/v1/info")).json()
        assert (info["state"], info["model_name"]) == ("starting", "tiny")
        for method, name in PROTECTED[1:]:
            assert (await http.request(method, f"/internal/v1/{name}")).status_code == 503


async def test_how_far_loading_is_can_be_seen(tiny: Path) -> None:
    worker = Worker(make_settings("both", tiny), KEY, "u/b")
    with Checkpoint(tiny, worker.on_progress) as checkpoint:
        for name in checkpoint:
            checkpoint.floats(name)
        async with serve(worker) as http:
            loading = (await http.get("/internal/v1/info")).json()["loading"]
            assert 0 < loading["read_bytes"] <= loading["total_bytes"]
            assert re.fullmatch(r"starting: \d+ % of [0-9.]+ GB, \d+ MB/s\n", (await http.get("/readyz")).text)


async def test_a_load_that_failed_is_unhealthy_and_says_why(tiny: Path) -> None:
    worker = Worker(make_settings("both", tiny), KEY, "u/b")
    worker.failed = "config.json: no such file"
    async with serve(worker) as http:
        answer = await http.get("/healthz")
        assert (answer.status_code, answer.text) == (503, "failed: config.json: no such file\n")


async def test_info_says_who_it_is_and_what_it_can_take(tiny: Path) -> None:
    async with running("decode", tiny, pod_name="chat-decode-abc", revision="5d8f") as decode:
        info = (await decode.http.get("/internal/v1/info")).json()
        node = decode.worker.node
        assert node is not None
        blocks = info["kv"].pop("blocks_total")
        assert info["kv"].pop("blocks_free") == blocks == (64 << 20) // (16 * info["kv"]["bytes_per_token"])
        assert info == {
            "protocol": 1,
            "features": FIELDS,
            "incarnation": "decode/boot",
            "pod": "chat-decode-abc",
            "role": "decode",
            "role_epoch": 0,
            "changing_to": None,
            "state": "ready",
            "last_resort": False,
            "revision": "5d8f",
            "model_name": "tiny",
            "model": {
                "name": "tiny",
                "digest": node.engine.model.digest,
                "revision": "",
                "vocab_size": 97,
                "max_model_len": 65536,
                "eos_token_ids": [0],
                "bos_token_id": None,
            },
            "kv": {
                "compat": node.compat,
                "host": "127.0.0.1",
                "port": node.listener.port,
                "interface": "lo",
                "transport": "tcp",
                "block_size_tokens": 16,
                "bytes_per_token": node.engine.layout.bytes_per_token,
            },
            "limits": {"max_running": 64, "max_waiting": 256},
            "load": {
                "waiting_requests": 0,
                "waiting_tokens": 0,
                "running_requests": 0,
                "room": {
                    "free_tokens": 16 * blocks,
                    "total_tokens": 16 * blocks,
                    "free_seats": 64,
                    "total_seats": 64,
                    "step_s": 0.0,
                },
                "prefill_limit_tokens": 2048,
            },
        }
        assert (await decode.http.get("/readyz")).status_code == 200
        tokenizer = (await decode.http.get("/internal/v1/tokenizer")).json()
        assert set(tokenizer) == {"digest", "tokenizer_json", "tokenizer_config", "chat_template"}


async def test_metrics_have_the_names_that_autoscaling_and_dashboards_read(tiny: Path) -> None:
    async with running("both", tiny) as one:
        await one.lines("decode", body(prompt(20)) | {"mode": "local"})
        await one.empty()
        families = {f.name: f for f in text_string_to_metric_families((await one.http.get("/metrics")).text)}
        assert {
            "disagg_worker_waiting_requests",
            "disagg_worker_waiting_tokens",
            "disagg_worker_running_requests",
            "disagg_worker_kv_blocks",
            "disagg_worker_prompt_tokens",
            "disagg_worker_generated_tokens",
            "disagg_worker_steps",
            "disagg_kv_transfer_bytes",
            "disagg_kv_transfer_seconds",
            "disagg_kv_transfer_exposed_seconds",
            "disagg_kv_transfer_failures",
            "disagg_worker_reservations_refused",
            "disagg_prefill_batch_limit_tokens",
            "disagg_prefill_batch_most_tokens",
            "disagg_worker",
        } <= set(families) | {name.removesuffix("_info") for name in families}
        blocks = {s.labels["state"]: s.value for s in families["disagg_worker_kv_blocks"].samples}
        assert set(blocks) == {"free", "used", "leased"}
        assert (blocks["used"], blocks["leased"]) == (0, 0)
        assert families["disagg_worker_prompt_tokens"].samples[0].value == 20
        assert families["disagg_worker_generated_tokens"].samples[0].value == 8
        assert all(sample.value > 0 for sample in families["disagg_worker_steps"].samples)
        (progress,) = families["disagg_worker_progress_timestamp_seconds"].samples
        assert abs(time.time() - progress.value) < 60
        labels = next(s.labels for f in families.values() for s in f.samples if s.name == "disagg_worker_info")
        assert labels == {"role": "both", "model": "tiny", "interface": "lo", "transport": "tcp"}


async def test_a_prompt_is_cached_for_its_tenant_and_the_metrics_tell(tiny: Path) -> None:
    async with running("both", tiny) as one:
        cached, spent = [], []
        for tenant in ("a", "a", "b"):
            lines = await one.lines("decode", body(prompt(40)) | {"mode": "local", "tenant": tenant})
            cached.append([line.get("cached_tokens") for line in lines if line["type"] == "token"])
            spent += [line["spent"] for line in lines if "spent" in line]
        assert [c[0] for c in cached] == [0, 32, 0]
        told = [spent_time.parse(value) for value in spent]
        assert len(told) == 3
        assert all(t is not None and t.wait_s >= 0 and t.compute_s > 0 for t in told)
        assert all(rest == [None] * len(rest) for _, *rest in cached)
        families = {f.name: f for f in text_string_to_metric_families((await one.http.get("/metrics")).text)}
        assert families["disagg_worker_cached_tokens"].samples[0].value == 32
        assert families["disagg_worker_preemptions"].samples[0].value == 0
        assert families["disagg_worker_host_cache_bytes"].samples[0].value == 0
        seconds = {s.labels["part"]: s.value for s in families["disagg_worker_step_seconds"].samples}
        assert seconds.keys() == {"forward", "rest"}
        assert min(seconds.values()) > 0


async def test_decodes_room_is_taken_and_a_garbled_one_refused_by_name(tiny: Path) -> None:
    room = {"free_tokens": 0, "total_tokens": 100, "free_seats": 3, "total_seats": 4, "step_s": 0.1}
    async with running("prefill", tiny) as one:
        assert (await one.http.post("/internal/v1/decode-room", json=room)).status_code == 204
        assert one.load().prefill_limit_tokens == 256
        for garbled in (room | {"free_seats": -1}, {}, room | {"x": 1}, [room], room | {"step_s": "1"}):
            answer = await one.http.post("/internal/v1/decode-room", json=garbled)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert (
            await one.http.post("/internal/v1/decode-room", json=room, headers={"authorization": "x"})
        ).status_code == 401
        assert len(tokens_of(await one.lines("prefill", body(prompt(400)) | {"ticket": None}))) == 1


@pytest.mark.parametrize(("role", "refused"), [("prefill", "decode"), ("decode", "prefill")])
async def test_a_worker_does_its_roles_work_only(tiny: Path, role: str, refused: str) -> None:
    async with running(role, tiny) as worker:
        request = body(prompt(4)) | ({"mode": "local"} if refused == "decode" else {"ticket": None})
        status, error = await worker.refused(refused, request)
        assert (status, error["code"], error["retryable"]) == (503, "other_role", True)


async def test_requests_that_can_never_be_served_are_told_so(tiny: Path) -> None:
    async with running("both", tiny, max_model_len=64) as one:
        for role, extra in (
            ("decode", {"mode": "local"}),
            ("decode", {"mode": "remote"}),
            ("prefill", {"ticket": None}),
        ):
            status, error = await one.refused(role, body(prompt(64)) | extra)
            assert (status, error["code"], error["retryable"]) == (413, "prompt_too_long", False)
            status, error = await one.refused(role, body([1, 97]) | {"extra": 1} | extra)
            assert (status, error["code"]) == (400, "invalid_request")
        status, error = await one.refused("decode", body([1, 97]) | {"mode": "local"})
        assert (status, error["code"]) == (400, "invalid_request")
        await one.empty()


async def test_a_body_over_the_limit_is_refused_without_being_parsed(tiny: Path) -> None:
    async with running("both", tiny) as one:

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(body_errors.LIMITS.bytes_each // (1 << 20) + 1):
                yield b" " * (1 << 20)

        answer = await one.http.post("/internal/v1/decode", content=endless())
        assert answer.status_code == 400
        assert "over" in answer.json()["error"]["message"]
        await one.empty()


async def test_a_body_that_does_not_come_is_not_waited_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_errors, "LIMITS", replace(body_errors.LIMITS, seconds_each=0.2))
    async with running("both", tiny) as one:
        reader, writer = await asyncio.open_connection(one.http.base_url.host, one.http.base_url.port)
        auth = one.http.headers["authorization"]
        head = f"POST /internal/v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nAuthorization: {auth}\r\n\r\n"
        writer.write(head.encode())
        assert b"400" in await reader.readline()
        writer.close()
        await one.empty()


async def test_bodies_are_bounded_together(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_errors, "LIMITS", replace(body_errors.LIMITS, bytes_together=100_000))
    async with running("both", tiny) as one:
        url, auth = one.http.base_url, one.http.headers["authorization"]
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /internal/v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\nAuthorization: {auth}"
        writer.write(head.encode() + b"\r\n\r\n" + b" " * 99_998)
        async with asyncio.timeout(20):
            while (answer := await one.http.post("/internal/v1/decode", content=b" " * 5000)).status_code != 429:
                await asyncio.sleep(0.01)
            error = answer.json()["error"]
            assert (error["code"], error["retryable"]) == ("no_capacity", True)
            for order in ("role", "drain", "decode-room"):
                assert (await one.http.post(f"/internal/v1/{order}", content=b" " * 5000)).status_code == 429
        writer.close()
        async with asyncio.timeout(20):
            while (await one.http.post("/internal/v1/decode", content=b" " * 5000)).status_code != 400:
                await asyncio.sleep(0.01)
        await one.empty()


async def test_no_path_leads_to_another_host(tiny: Path) -> None:
    async with serve(Worker(make_settings("both", tiny), KEY, "u/b")) as http:
        for path in ("/healthz/", "/internal/v1/info/", "//healthz"):
            answer = await http.get(path, headers={"host": "elsewhere"}, follow_redirects=False)
            assert (answer.status_code, answer.headers.get("location")) == (404, None)


async def test_a_draining_worker_refuses_new_work_and_is_not_ready(tiny: Path) -> None:
    async with running("both", tiny) as one:
        one.worker.draining = True
        assert (await one.http.get("/readyz")).text == "draining\n"
        assert (await one.http.get("/healthz")).status_code == 200
        assert (await one.http.get("/internal/v1/info")).json()["state"] == "draining"
        status, error = await one.refused("decode", body(prompt(4)) | {"mode": "local"})
        assert (status, error["code"], error["retryable"]) == (503, "draining", True)


async def test_a_dead_engine_is_neither_healthy_nor_ready(tiny: Path) -> None:
    async with running("both", tiny) as one:
        assert one.worker.node is not None
        await asyncio.to_thread(one.worker.node.engine.stop, 5.0)
        assert (await one.http.get("/healthz")).status_code == 503
        assert (await one.http.get("/readyz")).status_code == 503


async def test_a_stream_that_fails_inside_ends_in_one_error_and_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[bool] = []

    async def lines() -> AsyncIterator[Line]:
        yield {"type": "token", "index": 0, "token": 1}
        raise ZeroDivisionError

    async def endpoint(_: object) -> NdjsonResponse:
        return NdjsonResponse(lines(), lambda: closed.append(True), asyncio.get_running_loop().time() + 60)

    app = Starlette(routes=[Route("/", endpoint)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        got = [json.loads(line) for line in (await http.get("/")).text.splitlines()]
    assert [line["type"] for line in got] == ["token", "error"]
    assert (got[-1]["code"], closed) == ("internal", [True])
    assert "ZeroDivisionError" in caplog.text


async def test_a_request_for_other_weights_is_refused_before_anything_is_held(tiny: Path) -> None:
    async with running("decode", tiny) as one:
        ours = one.worker.model_digest
        for digest, status in (("of another model", 503), (ours, 200)):
            asked = body(prompt(5)) | {"mode": "local", "digest": digest}
            answer = await one.http.post("/internal/v1/decode", json=asked)
            assert answer.status_code == status
            if status == 503:
                error = answer.json()["error"]
                assert (error["code"], error["retryable"]) == ("other_model", True)
                assert one.worker.active == 0
        await one.empty()
