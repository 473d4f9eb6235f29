"""Sampling parameters, formats and the prefix cache of requests that a real vLLM pair serves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.engine.vllm_process import BLOCK_SIZE, MODEL, MODEL_NAME, vllm
from tests.engines.served import Served, pieces, prompts, served

from disagg_wire.roles import BOTH, DECODE, PREFILL

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
NEW_TOKENS = 24
PENALTIES: tuple[dict[str, Any], ...] = (
    {"presence_penalty": 1.5},
    {"frequency_penalty": 1.5},
    {"repetition_penalty": 1.5},
)
EOS: int = json.loads((MODEL / "config.json").read_text())["eos_token_id"]


async def completion(stack: Served, prompt: list[int], max_tokens: int, **more: Any) -> dict[str, Any]:
    """Return the whole answer to a greedy request, served by prefill and decode."""
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **more}
    answer = await stack.http.post(f"{stack.url}/v1/completions", json=body, headers={"x-disagg-trace": "1"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["disagg"]["path"] == "remote"
    return found


async def test_parameters_formats_and_cache_reach_the_engines(tmp_path: Path) -> None:
    # A small model would fill the JSON with spaces.
    compact = ("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}))
    async with served(tmp_path, PREFILL, DECODE, more=compact) as stack, vllm(tmp_path, BOTH) as alone:
        await alone.wait_ready()
        other, *candidates = prompts(12, longest=300, seed=23)[1:]

        async def wanted(prompt: list[int], **sampling: Any) -> dict[str, Any]:
            own = {"temperature": 0.0, "max_tokens": NEW_TOKENS, "ignore_eos": True, "detokenize": False} | sampling
            found: dict[str, Any] = (await alone.generate(prompt, NEW_TOKENS, sampling_params=own))["choices"][0]
            return found

        async def changed_by_each(prompt: list[int]) -> bool:
            plain = (await wanted(prompt))["token_ids"]
            return all([(await wanted(prompt, **penalty))["token_ids"] != plain for penalty in PENALTIES])

        prompt, *_ = [p for p in candidates if await changed_by_each(p)]
        for penalty in PENALTIES:
            answer, own = await stack.ask(prompt, NEW_TOKENS, **penalty), await wanted(prompt, **penalty)
            assert (answer.error, answer.tokens) == (None, pieces(own["token_ids"])), penalty

        biased = await stack.ask(prompt, NEW_TOKENS, logit_bias={"77": 100})
        assert biased.tokens == pieces([77] * NEW_TOKENS)
        ended = await completion(stack, prompt, NEW_TOKENS, logit_bias={str(EOS): 100})
        assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")

        await _log_probabilities(stack, prompt, await wanted(prompt, logprobs=3))
        await _formats(stack, prompt)
        await _cache(stack, other)


async def _log_probabilities(stack: Served, prompt: list[int], wanted: dict[str, Any]) -> None:
    """Check the log probabilities and their alternatives against those of one engine."""
    answer = await completion(stack, prompt, NEW_TOKENS, logprobs=3, ignore_eos=True)
    told, own = answer["choices"][0]["logprobs"], wanted["logprobs"]["content"]
    assert told["token_logprobs"] == pytest.approx([entry["logprob"] for entry in own], abs=1e-3)
    for found, entry in zip(told["top_logprobs"], own, strict=True):
        best = sorted(entry["top_logprobs"], key=lambda t: int(t["rank"]))[:3]
        assert sorted(found.values()) == pytest.approx(sorted(t["logprob"] for t in best), abs=1e-3)


async def _formats(stack: Served, prompt: list[int]) -> None:
    async def text(**structured: Any) -> str:
        found = await completion(stack, prompt, 64, structured_outputs=structured)
        assert found["choices"][0]["finish_reason"] == "stop"
        return str(found["choices"][0]["text"])

    assert await text(choice=["amber", "green"]) in ("amber", "green")
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", await text(regex="[0-9]{3}-[a-f]{2}"))
    schema = {
        "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False,
    }  # fmt: skip
    assert isinstance(json.loads(await text(json=schema))["on"], bool)


async def _cache(stack: Served, prompt: list[int]) -> None:
    """Check that prefixes are found again, and told, but not by those with another salt."""

    async def cached(salt: str) -> int:
        answer = await completion(stack, prompt, 4, cache_salt=salt)
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    whole_blocks = (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert [await cached("a"), await cached("a"), await cached("b")] == [0, whole_blocks, 0]
