"""Tests of streams that go on at another router, with fake workers that keep what they make."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.fakes.keeping_worker import KeepingWorker
from tests.fakes.token_worker import KEY, Fault, TokenWorker
from tests.router.stack import MODEL, Stack

from disagg_protocol.keep_limits import KeepLimits
from disagg_router import settings
from disagg_router.main import server_of
from disagg_router.router import Router

TEXT: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 6, "seed": 5, "stream": True}
CHAT: dict[str, Any] = {k: v for k, v in TEXT.items() if k != "prompt"} | {
    "messages": [{"role": "user", "content": "hello"}]
}
USAGE = {"stream_options": {"include_usage": True}}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("completions", TEXT),
    ("completions", TEXT | USAGE | {"logprobs": 2}),
    ("completions", TEXT | {"max_tokens": 1}),
    ("chat/completions", CHAT | USAGE | {"logprobs": True, "top_logprobs": 1}),
    ("chat/completions", {k: v for k, v in CHAT.items() if k != "seed"} | {"stop": ["q", "zz"]}),
    ("chat/completions", CHAT | USAGE | {"n": 3, "stop": "t"}),
    ("completions", {k: v for k, v in TEXT.items() if k != "seed"} | USAGE | {"prompt": ["a", "bc"], "n": 2}),
]


@contextlib.asynccontextmanager
async def another(folder: Path, keys: Path | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Run a second router, and yield its client once it knows the workers."""
    listed = folder / "members.json"
    values = {"model_name": MODEL, "cluster_key_file": str(folder / "key"), "membership": f"file://{listed}",
              "poll_interval_s": 0.05, "api_keys_file": keys}  # fmt: skip
    router = Router(settings.Settings.model_validate(values))
    server = server_of(router)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        tasks = [asyncio.create_task(router.run()), asyncio.create_task(server.serve(sockets=[sock]))]
        members = len(json.loads(listed.read_text())["workers"])
        async with asyncio.timeout(60):
            while not (server.started and router.table.synced and len(router.table.workers()) == members):
                await asyncio.sleep(0.01)
        try:
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
                yield http
        finally:
            server.should_exit = True
            await tasks[1]
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await router.close()


def events(text: str) -> list[str]:
    return [event for event in text.split("\n\n") if event]


def name_of(event: str) -> str:
    """Return the id of an event."""
    return event.split("\n")[0].removeprefix("id: ")


def by_choice(listed: list[str]) -> list[tuple[int, str]]:
    """Return the events in the order of their choices: those of different choices come in any
    order.
    """
    contents = [event.split("data: ", 1)[1] for event in listed]
    keyed = [(json.loads(c)["choices"][0]["index"] if '"choices":[{' in c else 999, c) for c in contents]
    return sorted(keyed, key=lambda item: item[0])


async def ask(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], name: str, last: str = "", **more: str
) -> httpx.Response:
    headers = {"x-request-id": name, **more} | ({"last-event-id": last} if last else {})
    return await http.post(f"/v1/{path}", json=body, headers=headers)


async def cut(http: httpx.AsyncClient, path: str, body: dict[str, Any], name: str, n: int, last: str = "") -> list[str]:
    """Return the first events of a stream, which is then left."""
    text, headers = "", {"x-request-id": name} | ({"last-event-id": last} if last else {})
    async with http.stream("POST", f"/v1/{path}", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_text():
            text += piece
            if text.count("\n\n") >= n:
                return text.split("\n\n")[:-1][:n]
    raise AssertionError("it ended before that")


@pytest.mark.parametrize("decode_role", ["decode", "both"])
async def test_the_rest_is_exactly_what_was_left_wherever_it_is_cut(tmp_path: Path, decode_role: str) -> None:
    d = KeepingWorker("d", decode_role)
    workers = [d] if decode_role == "both" else [KeepingWorker("p", "prefill"), d]
    async with Stack(tmp_path, *workers) as stack, another(tmp_path) as other:
        for i, (path, body) in enumerate(SHAPES if decode_role == "decode" else SHAPES[-1:]):
            whole = events((await ask(stack.http, path, body, f"r{i}")).text)
            assert whole[-1] == "data: [DONE]"
            for at in range(len(whole)):
                last = name_of(whole[at - 1]) if at else "0"
                rest = await ask(other, path, body, f"r{i}", last)
                assert rest.status_code == 200, rest.text
                assert by_choice(events(rest.text)) == by_choice(whole[at:]), (body, last)
                if body.get("n") is None and at:
                    assert last == str(at)
                    assert events(rest.text) == whole[at:]
            beyond = ".".join(str(int(n) + 1) for n in name_of(whole[-2]).split("."))
            assert (await ask(other, path, body, f"r{i}", beyond)).status_code == 400


async def test_who_does_not_name_the_request_gets_no_ids_and_nothing_is_kept(tmp_path: Path) -> None:
    p, d = KeepingWorker("p", "prefill"), KeepingWorker("d", "decode")
    async with Stack(tmp_path, p, d) as stack:
        answer = await stack.http.post("/v1/completions", json=TEXT)
        assert all(event.startswith("data: ") for event in events(answer.text))
        await ask(stack.http, "completions", TEXT | {"stream": False}, "mine")
        assert not len(p.answers.store)
        assert not len(d.answers.store)
        for headers, body in [
            ({"last-event-id": "3"}, TEXT),
            ({"last-event-id": "3", "x-request-id": "not plain"}, TEXT),
            ({"last-event-id": "3", "x-request-id": "a"}, TEXT | {"stream": False}),
            ({"last-event-id": "x", "x-request-id": "a"}, TEXT),
            ({"last-event-id": "3.1", "x-request-id": "a"}, TEXT),
        ]:
            refused = await stack.http.post("/v1/completions", json=body, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


async def test_only_the_key_and_the_body_that_began_it_get_the_rest(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    p, d = KeepingWorker("p", "prefill"), KeepingWorker("d", "decode")
    mine, others = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
    async with Stack(tmp_path, p, d, api_keys_file=keys) as stack, another(tmp_path, keys) as other:
        whole = events((await ask(stack.http, "completions", TEXT, "a", **mine)).text)
        assert events((await ask(other, "completions", TEXT, "a", "4", **mine)).text) == whole[4:]
        for name, body, key, path, wanted in [
            ("a", TEXT, others, "completions", (410, "not_resumable")),
            ("b", TEXT, mine, "completions", (410, "not_resumable")),
            ("a", TEXT | {"seed": 6}, mine, "completions", (409, "request_id_reused")),
            ("a", CHAT, mine, "chat/completions", (409, "request_id_reused")),
            ("a", TEXT, {"authorization": "Bearer x"}, "completions", (401, "invalid_api_key")),
        ]:
            refused = await ask(other, path, body, name, "4", **key)
            assert (refused.status_code, refused.json()["error"]["code"]) == wanted
        # Another body by the same name is another answer: of the first one nothing is left.
        again = events((await ask(stack.http, "completions", TEXT | {"seed": 6}, "a", **mine)).text)
        assert (await ask(other, "completions", TEXT, "a", "4", **mine)).status_code == 409
        rest = await ask(other, "completions", TEXT | {"seed": 6}, "a", "4", **mine)
        assert events(rest.text) == again[4:]
        theirs = events((await ask(stack.http, "completions", TEXT | {"seed": 7}, "a", **others)).text)
        assert events((await ask(other, "completions", TEXT | {"seed": 7}, "a", "2", **others)).text) == theirs[2:]
        assert events((await ask(other, "completions", TEXT | {"seed": 6}, "a", "4", **mine)).text) == again[4:]
        # Workers know neither the key nor the name.
        told = json.dumps([w.seen.bodies for w in (p, d)])
        assert '"one"' not in told
        page = (await other.get("/metrics")).text
        assert 'disagg_router_resumes_total{outcome="request_id_reused"} 3.0' in page


@pytest.mark.parametrize("unread_s", [5.0, 0.0])
async def test_a_stream_that_is_cut_again_and_again_goes_on(tmp_path: Path, unread_s: float) -> None:
    """It is read on where it is still made, and otherwise goes on from the tokens that are kept."""
    p = KeepingWorker("p", "prefill", KeepLimits(unread_s=unread_s))
    d = KeepingWorker("d", "decode", KeepLimits(unread_s=unread_s))
    for path, body in [("completions", TEXT), ("chat/completions", CHAT | USAGE | {"n": 2, "logprobs": True})]:
        body = body | {"max_tokens": 40}
        async with Stack(tmp_path, p, d) as stack, another(tmp_path) as other:
            whole = events((await ask(stack.http, path, body, "whole")).text)
            d.token_interval_s = 0.01
            got, last = [], ""
            for http in (stack.http, other, stack.http, other):
                got += await cut(http, path, body, "mine", 8, last)
                last = name_of(got[-1])
                assert len(set(map(name_of, got))) == len(got)
            d.token_interval_s = 0.0
            got += events((await ask(stack.http, path, body, "mine", last)).text)
            plain = [[content for _, content in by_choice(listed)] for listed in (got, whole)]
            assert [_without_names(c) for c in plain[0]] == [_without_names(c) for c in plain[1]]
        began_anew = sum("mode" in body and body["epoch"] > 0 for body in d.seen.bodies)
        assert bool(began_anew) == (unread_s == 0)


def _without_names(content: str) -> Any:
    return content if content == "[DONE]" else {**json.loads(content), "id": "", "created": 0}


async def test_a_worker_that_is_lost_takes_with_it_what_only_it_knows(tmp_path: Path) -> None:
    """The others know no more than the client, which gets no other text for what it has."""
    p, d, e = KeepingWorker("p", "prefill"), KeepingWorker("d", "decode"), KeepingWorker("e", "decode")
    async with Stack(tmp_path, p, d, e) as stack, another(tmp_path) as other:
        whole = events((await ask(stack.http, "completions", TEXT, "a")).text)
        knows = next(w for w in (d, e) if len(w.answers.store))
        await knows.stop()
        refused = await ask(other, "completions", TEXT, "a", "4")
        assert (refused.status_code, refused.json()["error"]["code"]) == (410, "not_resumable")
        await stack.until(lambda: len(stack.router.table.workers()) == 2)
        # What prefill has told is known.
        rest = events((await ask(stack.http, "completions", TEXT, "a", "1")).text)
        assert rest == whole[1:]


async def test_an_attempt_that_failed_before_is_part_of_the_rest(tmp_path: Path) -> None:
    p, d = KeepingWorker("p", "prefill"), KeepingWorker("d", "decode")
    async with Stack(tmp_path, p, d) as stack, another(tmp_path) as other:
        whole = events((await ask(stack.http, "completions", TEXT | USAGE, "whole")).text)
        d.faults = [Fault("decode", "error", after_tokens=3)]
        first = events((await ask(stack.http, "completions", TEXT | USAGE, "mine")).text)
        assert [_without_names(e.split("data: ")[1]) for e in first] == [
            _without_names(e.split("data: ")[1]) for e in whole
        ]
        for at in range(1, len(first)):
            assert events((await ask(other, "completions", TEXT | USAGE, "mine", str(at))).text) == first[at:]


async def test_what_is_kept_ends_with_its_time(tmp_path: Path) -> None:
    p, d = (KeepingWorker(n, r, KeepLimits(keep_s=0.3)) for n, r in (("p", "prefill"), ("d", "decode")))
    async with Stack(tmp_path, p, d) as stack:
        await ask(stack.http, "completions", TEXT, "a")
        await stack.until(lambda: not len(d.answers.store) and not len(p.answers.store))
        refused = await ask(stack.http, "completions", TEXT, "a", "4")
        assert (refused.status_code, refused.json()["error"]["code"]) == (410, "not_resumable")


async def test_what_nobody_needs_is_not_made_further(tmp_path: Path) -> None:
    """A stop string ends the answer, though not for the worker; a client that has got nothing
    begins anew.
    """
    p, d = (KeepingWorker(n, r, KeepLimits(unread_s=1000)) for n, r in (("p", "prefill"), ("d", "decode")))
    async with Stack(tmp_path, p, d) as stack:
        text = "".join(
            json.loads(e[e.index("{") :])["choices"][0]["text"]
            for e in events((await ask(stack.http, "completions", TEXT, "a")).text)[:-1]
        )
        d.token_interval_s = 0.005
        body = TEXT | {"max_tokens": 400, "stop": text[3:5]}
        stopped = events((await ask(stack.http, "completions", body, "b")).text)
        d.hold.clear()  # it ends by itself no more
        await stack.until(lambda: d.running == p.running == 0, 10)
        d.hold.set()
        assert events((await ask(stack.http, "completions", body, "b", "2")).text) == stopped[2:]
        d.reads.clear()
        p.hold.clear()
        with pytest.raises(httpx.ReadTimeout):
            await stack.http.post("/v1/completions", json=TEXT, headers={"x-request-id": "c"}, timeout=0.3)
        p.hold.set()
        d.reads.set()
        await stack.until(lambda: d.running == p.running == 0)


async def test_workers_that_keep_nothing_are_not_told(tmp_path: Path) -> None:
    async with Stack(tmp_path, TokenWorker("p", "prefill"), KeepingWorker("d", "decode")) as stack:
        whole = events((await ask(stack.http, "completions", TEXT, "a")).text)
        assert all("resume" not in body for body in stack.workers[0].seen.bodies)
        # Decode knows the ID of the token that prefill has made.
        assert events((await ask(stack.http, "completions", TEXT, "a", "1")).text) == whole[1:]
        assert events((await ask(stack.http, "completions", TEXT, "a", "0")).text) == whole
        logprobs = TEXT | {"logprobs": 1}
        whole = events((await ask(stack.http, "completions", logprobs, "b")).text)
        assert events((await ask(stack.http, "completions", logprobs, "b", "1")).text) == whole[1:]
        assert (await ask(stack.http, "completions", logprobs, "b", "0")).status_code == 410


async def test_the_client_of_openai_reads_streams_with_ids(tmp_path: Path) -> None:
    async with Stack(tmp_path, KeepingWorker("p", "prefill"), KeepingWorker("d", "decode")) as stack:
        texts = []
        for headers in ({}, {"x-request-id": "a"}, {"x-request-id": "a", "Last-Event-ID": "0"}):
            stream = await stack.openai.completions.create(
                model=MODEL, prompt="hello", max_tokens=9, seed=5, stream=True, extra_headers=headers
            )
            texts.append([chunk.choices[0].text async for chunk in stream])
        assert texts[0] == texts[1] == texts[2]
        with pytest.raises(openai.APIStatusError) as refused:
            await stack.openai.completions.create(
                model=MODEL, prompt="hello", max_tokens=8, seed=5, stream=True,
                extra_headers={"x-request-id": "a", "Last-Event-ID": "0"},
            )  # fmt: skip
        assert refused.value.status_code == 409
    assert KEY


async def test_a_resumed_stream_is_counted_once(tmp_path: Path) -> None:
    async with Stack(tmp_path, KeepingWorker("p", "prefill"), KeepingWorker("d", "decode")) as stack:
        await ask(stack.http, "completions", TEXT, "a")
        await ask(stack.http, "completions", TEXT, "a", "2")
        await ask(stack.http, "completions", TEXT, "b", "2")
        await stack.until(lambda: stack.router.active == 0)
        assert await stack.metric('disagg_router_generations_total{outcome="completed"}') == 1
        assert await stack.metric("disagg_router_generated_tokens_total") == 6
        assert await stack.metric('disagg_router_requests_total{code="200",endpoint="completions"}') == 2
        assert await stack.metric('disagg_router_requests_total{code="410",endpoint="completions"}') == 1
        assert await stack.metric('disagg_router_resumes_total{outcome="resumed"}') == 1
