"""Two LoRA adapters and the model itself, alternating on one pair of vLLM engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.engine.vllm_process import MODEL_NAME, vllm
from tests.engines.lora import write_adapter
from tests.engines.served import pieces, prompts, served

from disagg_wire.roles import BOTH, DECODE, PREFILL

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
NEW_TOKENS = 12


async def test_60_of_60_answers_come_from_the_adapter_that_was_asked_for(tmp_path: Path) -> None:
    names = {f"lora-{i}": write_adapter(tmp_path / f"lora-{i}", seed=i) for i in (1, 2)}
    modules = [json.dumps({"name": name, "path": str(path)}) for name, path in names.items()]
    more = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--lora-modules", *modules)
    async with (
        served(tmp_path, PREFILL, DECODE, more=more, lora_adapters=json.dumps([*names])) as stack,
        vllm(tmp_path, BOTH, *more) as alone,
    ):
        await alone.wait_ready()
        listed = (await stack.http.get(f"{stack.url}/v1/models")).json()["data"]
        assert {m["id"] for m in listed} == {MODEL_NAME, *names}
        models = [MODEL_NAME, *names]
        # Each prompt is asked of all three, twice: what one has cached fits none of the others.
        asked = prompts(10, longest=300, seed=17)
        wanted = {
            (i, model): pieces((await alone.generate(p, NEW_TOKENS, model=model))["choices"][0]["token_ids"])
            for i, p in enumerate(asked)
            for model in models
        }
        assert all(len({tuple(wanted[i, m]) for m in models}) == 3 for i in range(1, len(asked)))
        right = 0
        for _ in range(2):
            for i, prompt in enumerate(asked):
                # One after the other: where requests with and without an adapter share a batch, the
                # build for CPUs applies an adapter to both, with one engine alone as well.
                answers = [await stack.ask(prompt, NEW_TOKENS, model=m) for m in models]
                assert [a.error for a in answers] == [None] * 3
                right += sum(a.tokens == wanted[i, m] for a, m in zip(answers, models, strict=True))
        assert right == 60
        assert await stack.engines["p0"].metric("vllm:prefix_cache_hits_total") > 0
        unknown = await stack.ask(asked[0], 4, model="lora-3")
        assert unknown.error is not None
        assert unknown.error.startswith("404")
