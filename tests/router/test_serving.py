"""Tests of the OpenAI API end to end: the openai package, a router and workers on real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fakes.byte_tokenizer import ASSISTANT, USER
from tests.fakes.token_worker import Fault, TokenWorker, expected_text
from tests.router.stack import MODEL, Stack, pair, tokens_of

from disagg_router.router import Router

# Each test starts a whole stack on real sockets, which takes a second.
pytestmark = pytest.mark.slow

PROMPT = tokens_of("hello")
NOTHING_CACHED = {"prompt_tokens_details": {"cached_tokens": 0}}
TRACED = {"X-Disagg-Trace": "1"}


async def test_a_completion_is_prefilled_here_and_decoded_there_and_says_so(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        answer = (await stack.complete(max_tokens=12)).json()
        assert answer["choices"][0] == {
            "index": 0,
            "finish_reason": "length",
            "text": expected_text(5, PROMPT, 12),
            "logprobs": None,
        }
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17, **NOTHING_CACHED}
        trace = answer["disagg"]
        assert (trace["prefill"]["pod"], trace["decode"]["pod"], trace["path"], trace["attempts"]) == (
            "p0",
            "d0",
            "remote",
            1,
        )
        assert (trace["kv_bytes"], trace["interface"]) == (64 * 6, "net1")
        assert trace["ttft_s"] > 0
        assert trace["tpot_s"] >= 0


async def test_a_chat_goes_through_the_models_template_whole_and_streamed(tmp_path: Path) -> None:
    prompt = [USER, *tokens_of("hé"), ASSISTANT]
    async with Stack(tmp_path, *pair()) as stack:
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "é"}]}]
        whole = await stack.openai.chat.completions.create(model=MODEL, messages=messages, max_tokens=9, seed=3)
        assert whole.choices[0].message.content == expected_text(3, prompt, 9)
        stream = await stack.openai.chat.completions.create(
            model=MODEL, messages=messages, max_completion_tokens=9, seed=3, stream=True,
            stream_options={"include_usage": True}, extra_headers=TRACED,
        )  # fmt: skip
        chunks: list[Any] = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == expected_text(3, prompt, 9)
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        assert chunks[-1].usage.total_tokens == len(prompt) + 9
        assert chunks[-1].disagg["path"] == "remote"


async def test_one_token_needs_prefill_alone(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.seen.bodies.clear()
        answer = (await stack.complete(max_tokens=1)).json()
        assert answer["choices"][0]["text"] == expected_text(5, PROMPT, 1)
        assert answer["disagg"]["path"] == "prefill_only"
        assert answer["disagg"]["decode"] is None
        assert decode.seen.bodies == []
        assert prefill.seen.bodies[-1]["ticket"] is None


async def test_without_a_prefill_worker_decode_prefills_itself(tmp_path: Path) -> None:
    async with Stack(tmp_path, TokenWorker("d0", "decode")) as stack:
        answer = (await stack.complete()).json()
        assert answer["choices"][0]["text"] == expected_text(5, PROMPT, 8)
        assert answer["disagg"]["path"] == "local"
        assert await stack.metric('disagg_router_requests_disaggregated_total{path="local"}') == 1


async def test_a_worker_of_role_both_serves_alone(tmp_path: Path) -> None:
    async with Stack(tmp_path, TokenWorker("b0", "both")) as stack:
        assert (await stack.complete()).json()["choices"][0]["text"] == expected_text(5, PROMPT, 8)
        assert (await stack.complete(max_tokens=1)).json()["choices"][0]["text"] == expected_text(5, PROMPT, 1)


async def test_n_choices_of_several_prompts_differ_by_their_seed_and_the_prompts_count_once(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        answer = (await stack.complete(prompt=["ab", "ab", "c"], n=2, max_tokens=4)).json()
        prompts = ["ab", "ab", "ab", "ab", "c", "c"]
        wanted = [expected_text(5 + i % 2, tokens_of(p), 4) for i, p in enumerate(prompts)]
        assert [c["text"] for c in answer["choices"]] == wanted
        assert [c["index"] for c in answer["choices"]] == list(range(6))
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 24, "total_tokens": 29, **NOTHING_CACHED}


async def test_the_same_choices_come_streamed(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        stream = await stack.openai.completions.create(model=MODEL, prompt="ab", n=3, max_tokens=5, seed=1, stream=True)
        texts = ["", "", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [expected_text(1 + i, tokens_of("ab"), 5) for i in range(3)]


async def test_prompts_of_token_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        one = (await stack.complete(prompt=PROMPT)).json()["choices"]
        two = (await stack.complete(prompt=[PROMPT, [7]])).json()["choices"]
        assert [c["text"] for c in one] == [expected_text(5, PROMPT, 8)]
        assert [c["text"] for c in two] == [expected_text(5, PROMPT, 8), expected_text(5, [7], 8)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_string_ends_the_text_before_it_and_frees_the_workers(tmp_path: Path, streamed: bool) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        text = expected_text(5, PROMPT, 200)
        stop = text[20:23]
        cut = text[: text.index(stop)]
        if streamed:
            stream = await stack.openai.completions.create(
                model=MODEL, prompt="hello", max_tokens=200, seed=5, stop=[stop], stream=True
            )
            chunks = [c async for c in stream]
            assert "".join(c.choices[0].text for c in chunks) == cut
            assert chunks[-1].choices[0].finish_reason == "stop"
        else:
            answer = (await stack.complete(max_tokens=200, stop=stop)).json()
            assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (cut, "stop")
            assert answer["usage"]["completion_tokens"] == len(cut) + 3
        await stack.until(lambda: decode.running == 0 and prefill.running == 0)


async def test_the_end_token_ends_the_text_and_is_not_shown(tmp_path: Path) -> None:
    prefill, decode = pair()
    decode.end_after = 3
    async with Stack(tmp_path, prefill, decode) as stack:
        answer = (await stack.complete()).json()["choices"][0]
        assert (answer["text"], answer["finish_reason"]) == (expected_text(5, PROMPT, 3), "stop")


async def test_a_first_token_that_ends_the_request_is_the_whole_answer(tmp_path: Path) -> None:
    """Decode then sees a broken transfer, and reports it before prefill's end arrives.

    In the past, the request went on past its end.
    """
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        prefill.end_after = 0
        for _ in range(3):
            answer = (await stack.complete()).json()
            assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "stop")
            assert (answer["usage"]["completion_tokens"], answer["disagg"]["attempts"]) == (1, 1)
        assert "disagg_router_failovers_total{" not in (await stack.http.get("/metrics")).text


async def test_logprobs_in_both_forms(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        plain = (await stack.complete(max_tokens=3, logprobs=2)).json()["choices"][0]
        text = expected_text(5, PROMPT, 3)
        assert plain["logprobs"]["tokens"] == list(text)
        assert plain["logprobs"]["token_logprobs"] == [-0.5] * 3
        assert plain["logprobs"]["text_offset"] == [0, 1, 2]
        assert all(len(top) == 2 for top in plain["logprobs"]["top_logprobs"])
        messages: Any = [{"role": "user", "content": "x"}]
        chat = await stack.openai.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=2, logprobs=True, top_logprobs=1
        )
        content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
        assert content is not None
        assert [len(c.top_logprobs) for c in content] == [1, 1]
        assert "".join(c.token for c in content) == chat.choices[0].message.content


async def test_models_are_listed_and_found(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        assert [m.id async for m in stack.openai.models.list()] == [MODEL]
        assert (await stack.openai.models.retrieve(MODEL)).id == MODEL
        missing = await stack.http.get("/v1/models/other/one")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_both_legs(tmp_path: Path, stream: bool) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.seen.cancelled.clear()
        decode.hold.clear()
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 50, "stream": stream}
        async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as http:
            if stream:
                async with http.stream("POST", "/v1/completions", json=body) as answer:
                    assert answer.status_code == 200
                    await anext(answer.aiter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    await http.post("/v1/completions", json=body, timeout=0.5)
        await stack.until(decode.seen.cancelled.is_set)
        await stack.until(lambda: stack.router.active == 0)
        assert await stack.metric("disagg_router_running_requests") == 0


async def test_the_state_tells_the_operator_about_workers_pairs_and_waiting(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair(), TokenWorker("d1", "decode", compat="other")) as stack:
        state = await stack.state()
        assert state["pairs"] == {"expected": 1, "healthy": 1}
        assert state["waiting"] == {"prefill": 0, "decode": 0}
        worker = next(w for w in state["workers"] if w["name"] == "p0")
        assert {k: worker[k] for k in ("role", "state", "interface", "transport", "revision")} == {
            "role": "prefill", "state": "ready", "interface": "net1", "transport": "tcp", "revision": "r1",
        }  # fmt: skip
        assert (await stack.http.get("/internal/v1/state")).status_code == 401
        assert (
            await stack.http.get("/internal/v1/state", headers={b"authorization": "Bearer ü".encode("latin-1")})
        ).status_code == 401


async def test_a_pair_whose_handshake_fails_is_not_healthy_until_it_works(tmp_path: Path) -> None:
    prefill, decode = pair()
    prefill.faults = [Fault("prefill", "no_transfer", times=2)]
    async with Stack(tmp_path, prefill, decode) as stack:  # entering the block waits for the pair to become healthy
        assert prefill.faults[0].times == 0
        assert (await stack.state())["pairs"] == {"expected": 1, "healthy": 1}


async def test_before_any_worker_was_ready_the_answer_is_503_in_openais_form(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        assert (await stack.http.get("/readyz")).status_code == 200
        answer = await stack.complete()
        assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (
            503,
            "starting",
            "5",
        )


async def test_metrics_have_the_names_that_others_scrape(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        await stack.complete()
        await stack.http.post("/v1/completions", content=b"{")
        assert await stack.metric('disagg_router_requests_total{code="200",endpoint="completions"}') == 1
        assert await stack.metric('disagg_router_requests_total{code="400",endpoint="completions"}') == 1
        assert await stack.metric('disagg_router_waiting_requests{pool="prefill"}') == 0
        assert await stack.metric('disagg_router_waiting_requests{pool="decode"}') == 0
        assert await stack.metric('disagg_router_pairs{state="healthy"}') == 1
        assert await stack.metric("disagg_router_prompt_tokens_total") == 5
        assert await stack.metric("disagg_router_generated_tokens_total") == 8
        for name in ("ttft", "tpot", "request"):
            assert await stack.metric(f"disagg_router_{name}_seconds_count") == 1


async def test_a_router_that_just_began_is_ready_only_once_it_has_asked_the_workers(tmp_path: Path) -> None:
    """Otherwise a rolling update of routers refuses requests that the old ones would have taken."""
    async with Stack(tmp_path, *pair()) as stack:
        fresh = Router(stack.router.settings)
        running = asyncio.create_task(fresh.run())
        try:
            async with asyncio.timeout(10):
                while not fresh.table.synced:
                    await asyncio.sleep(0)
            assert set(fresh.table.catalogue.offers) == {MODEL}
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await fresh.client.close()
