"""Tests that an API key costs only itself: its limits, and its place beside others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.fakes.token_worker import TokenWorker
from tests.router.stack import MODEL, Stack

from disagg_router.admission import waiting_queue
from disagg_router.openai import api_keys
from disagg_wire.tenants import share_of

BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 4, "seed": 1}


def pair() -> tuple[TokenWorker, TokenWorker]:
    return TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")


def keys_file(folder: Path, **keys: dict[str, Any]) -> dict[str, Any]:
    """Write the file, as a Secret is swapped, and return the option that names it."""
    fresh, file = folder / "fresh", folder / "api-keys"
    fresh.write_text(json.dumps({"keys": [{"key": key} | rest for key, rest in keys.items()]}))
    fresh.replace(file)
    return {"api_keys_file": str(file)}


def limits(**values: int) -> dict[str, Any]:
    return {"limits": values}


async def ask(stack: Stack, key: str, **changes: Any) -> httpx.Response:
    return await stack.http.post("/v1/completions", json=BODY | changes, headers={"authorization": f"Bearer {key}"})


def is_limited(answer: httpx.Response) -> bool:
    if answer.status_code != 429:
        return False
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(answer.headers["retry-after"]) >= 1
    return True


async def test_who_is_over_its_requests_is_told_when_to_come_back_and_nobody_else_is(tmp_path: Path) -> None:
    file = keys_file(tmp_path, busy=limits(requestsPerMinute=2), other={})
    async with Stack(tmp_path, *pair(), **file) as stack:
        first, second, third = [await ask(stack, "busy", stream=n == 1) for n in range(3)]
        assert [a.status_code for a in (first, second, third)] == [200, 200, 429]
        assert [a.headers["x-ratelimit-remaining-requests"] for a in (first, second)] == ["1", "0"]
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert is_limited(third)
        assert 20 < int(third.headers["retry-after"]) <= 30
        for _ in range(4):
            answer = await ask(stack, "other")
            assert answer.status_code == 200
            assert not [h for h in answer.headers if h.startswith("x-ratelimit")]
        assert (await ask(stack, "neither")).status_code == 401
        assert await stack.metric('disagg_router_limited_requests_total{limit="requests"}') == 1
        client = openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="busy", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="2 requests a minute"):
            await client.completions.create(model=MODEL, prompt="x")
        await client.close()


async def test_tokens_of_prompts_and_answers_count_and_a_prompt_that_never_fits_is_not_to_be_sent_again(
    tmp_path: Path,
) -> None:
    prefill, decode = pair()
    file = keys_file(tmp_path, k=limits(tokensPerMinute=30), other={})
    async with Stack(tmp_path, prefill, decode, **file) as stack:
        longer = await ask(stack, "k", prompt="x" * 31)
        assert is_limited(longer)
        assert longer.headers["x-should-retry"] == "false"
        assert longer.headers["x-ratelimit-remaining-tokens"] == "30"
        assert not any(body["prompt_tokens"] > 20 for body in prefill.seen.bodies)
        answer = await ask(stack, "k", max_tokens=40)  # what runs is not cut off
        assert answer.json()["usage"] == {
            **answer.json()["usage"],
            "prompt_tokens": 5,
            "completion_tokens": 40,
        }
        assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
        owing = await ask(stack, "k", prompt="x")
        assert is_limited(owing)
        assert "x-should-retry" not in owing.headers
        assert int(owing.headers["retry-after"]) in range(25, 32)
        assert (await ask(stack, "other", max_tokens=40)).status_code == 200
        assert await stack.metric('disagg_router_limited_requests_total{limit="tokens"}') == 2


async def test_a_prompt_of_several_choices_counts_once(tmp_path: Path) -> None:
    file = keys_file(tmp_path, k=limits(tokensPerMinute=600))
    async with Stack(tmp_path, *pair(), **file) as stack:
        answer = await ask(stack, "k", prompt=["x" * 100, "y" * 100], n=2, max_tokens=1)
        assert answer.json()["usage"]["prompt_tokens"] == 200
        assert 396 <= int(answer.headers["x-ratelimit-remaining-tokens"]) < 500


async def test_requests_at_once_end_with_their_answers_however_these_end(tmp_path: Path) -> None:
    prefill, decode = pair()
    file = keys_file(tmp_path, k=limits(concurrency=1), other={})
    async with Stack(tmp_path, prefill, decode, **file) as stack:

        async def once_free() -> int:
            async with asyncio.timeout(60):
                while is_limited(answer := await ask(stack, "k")):
                    pass
            return answer.status_code

        headers = {"authorization": "Bearer k"}
        decode.token_interval_s = 0.02
        async with stack.http.stream(
            "POST", "/v1/completions", json=BODY | {"stream": True, "max_tokens": 200}, headers=headers
        ) as stream:
            assert stream.status_code == 200
            second = await ask(stack, "k", stream=True)
            assert is_limited(second)
            assert "1 requests of this API key run" in second.json()["error"]["message"]
            assert (await ask(stack, "other")).status_code == 200
        # The client has gone.
        decode.token_interval_s = 0.0
        assert await once_free() == 200
        await _wait_and_leave(stack, decode, lambda: ask(stack, "k"))
        # One that is whole, one that is wrong, one that fails.
        assert (await ask(stack, "k")).status_code == 200
        assert (await ask(stack, "k", temperature=-1)).status_code == 400
        assert (await ask(stack, "k", model="none")).status_code == 404
        assert (await ask(stack, "k", stream=True)).status_code == 200
        assert await once_free() == 200


async def _wait_and_leave(stack: Stack, decode: TokenWorker, call: Callable[[], Any]) -> None:
    """Let a request wait for room, and its client go away."""
    slots, decode.slots = decode.slots, 0
    task = asyncio.create_task(call())
    await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await stack.until(lambda: stack.router.active == 0)
    decode.slots = slots


async def _lined_up(stack: Stack, *asked: tuple[str, str], served: list[str]) -> list[asyncio.Task[None]]:
    """Let requests wait, one after the other; their names go to `served` when they are answered."""

    async def one(key: str, name: str) -> None:
        answer = await ask(stack, key)
        served.append(name if answer.status_code == 200 else f"{name}:{answer.json()['error']['code']}")

    tasks = []
    for i, (key, name) in enumerate(asked):
        tasks.append(asyncio.create_task(one(key, name)))
        await stack.until(lambda n=i: stack.router.queue.waiting("decode") == n + 1)
    return tasks


async def test_a_key_with_few_requests_does_not_wait_for_all_those_of_another(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, **keys_file(tmp_path, flood={}, quiet={})) as stack:
        decode.slots, served = 0, list[str]()
        flood = [("flood", f"f{i}") for i in range(8)]
        tasks = await _lined_up(stack, *flood, ("quiet", "q0"), ("quiet", "q1"), served=served)
        decode.slots = 1
        await asyncio.gather(*tasks)
        assert sorted(served) == sorted([*(n for _, n in flood), "q0", "q1"])
        assert served.index("q0") <= 1, str(served)
        assert served.index("q1") <= 3, str(served)


async def test_a_higher_priority_goes_first(tmp_path: Path) -> None:
    prefill, decode = pair()
    file = keys_file(tmp_path, batch={"priority": -5}, chat={"priority": 5})
    async with Stack(tmp_path, prefill, decode, **file) as stack:
        decode.slots, served = 0, list[str]()
        tasks = await _lined_up(
            stack, ("batch", "b0"), ("batch", "b1"), ("chat", "c0"), ("chat", "c1"), ("chat", "c2"), served=served
        )
        decode.slots = 1
        await asyncio.gather(*tasks)
        assert served == ["c0", "c1", "c2", "b0", "b1"]


async def test_a_key_that_fills_the_queue_shuts_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill, decode = pair()
    options = keys_file(tmp_path, flood={}, quiet={}) | {"queue_max_depth": 4}
    async with Stack(tmp_path, prefill, decode, **options) as stack:
        decode.slots, served = 0, list[str]()
        # One that tries leaves its place for that time, and finds it taken by nobody's fault.
        monkeypatch.setattr(waiting_queue, "_RETRY_S", 3600.0)
        tasks = await _lined_up(stack, *(("flood", f"f{i}") for i in range(4)), served=served)
        assert (await ask(stack, "flood")).json()["error"]["code"] == "queue_full"
        await stack.until(lambda: not any(queue._trying for queue in stack.router.queue._queues.values()))
        quiet = asyncio.create_task(ask(stack, "quiet"))
        await stack.until(lambda: served == ["f3:queue_full"])
        assert stack.router.queue.waiting("decode") == 4
        decode.slots = 1
        monkeypatch.undo()
        stack.router.queue.recheck()
        assert (await quiet).status_code == 200
        await asyncio.gather(*tasks)
        assert sorted(served) == ["f0", "f1", "f2", "f3:queue_full"]


async def test_limits_change_with_the_file_and_a_bad_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api_keys, "_LOOK_EVERY_S", 0.0)
    async with Stack(tmp_path, *pair(), **keys_file(tmp_path, a={}, b={})) as stack:
        assert (await ask(stack, "a")).status_code == 200
        keys_file(tmp_path, a=limits(requestsPerMinute=1), b={})
        assert [(await ask(stack, "a")).status_code for _ in range(2)] == [200, 429]
        keys_file(tmp_path, a={}, b=limits(concurrency=0))
        assert is_limited(await ask(stack, "a"))
        assert "keys[1].limits.concurrency: Input should be greater than or equal to 1" in caplog.text
        keys_file(tmp_path, a={}, b=limits(concurrency=1))
        assert [(await ask(stack, k)).status_code for k in "aab"] == [200, 200, 200]


async def test_workers_share_their_work_among_keys_and_not_among_the_salts_of_one(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, **keys_file(tmp_path, a={}, b={})) as stack:
        prefill.seen.bodies.clear()
        for key, salt in (("a", None), ("a", "one"), ("a", "two"), ("b", "one"), ("b", "one")):
            assert (await ask(stack, key, cache_salt=salt)).status_code == 200
        tenants = [body["tenant"] for body in prefill.seen.bodies]
        assert len(set(tenants)) == 4
        assert tenants[3] == tenants[4]
        shares = [share_of(t) for t in tenants]
        assert shares[0] == shares[1] == shares[2] != shares[3] == shares[4]
        assert not [t for t in tenants if "one" in t or len(t) > 128]
