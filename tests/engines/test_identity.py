"""Prefill and decode on two vLLM engines give the tokens of one, and compute no prompt twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.engine.vllm_process import BEFORE, vllm
from tests.engines.served import pieces, prompts, served

from disagg_wire.roles import BOTH, DECODE, PREFILL

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
PROMPTS, NEW_TOKENS = 48, 32


async def test_48_of_48_prompts_give_the_tokens_of_one_engine_and_no_prompt_is_computed_again(tmp_path: Path) -> None:
    async with served(tmp_path, PREFILL, DECODE) as stack, vllm(tmp_path, BOTH) as alone:
        await alone.wait_ready()
        decode = stack.engines["d0"]

        async def sources() -> dict[str, float]:
            return {
                s: await decode.metric("vllm:prompt_tokens_by_source_total", source=s)
                for s in ("local_compute", "local_cache_hit", "external_kv_transfer")
            }

        before = await sources()
        asked = prompts(PROMPTS)
        same = 0
        for prompt in asked:
            answer = await stack.ask(prompt, NEW_TOKENS)
            assert answer.error is None
            assert answer.trace["path"] == "remote"
            wanted = (await alone.generate(prompt, NEW_TOKENS))["choices"][0]["token_ids"]
            same += answer.tokens == pieces(wanted)
        assert same == PROMPTS
        found = {name: value - before[name] for name, value in (await sources()).items()}
        # Of each prompt decode computes the last token at most, to have something to sample from.
        assert found["local_compute"] <= PROMPTS
        assert sum(found.values()) == sum(map(len, asked))
        assert found["external_kv_transfer"] >= 0.9 * sum(map(len, asked))
        page = (await stack.http.get(f"{stack.adapter_urls['d0']}/metrics")).text
        assert "disagg_engine_late_reads_total 0.0" in page
        assert "disagg_engine_other_first_tokens_total 0.0" in page


async def test_the_version_before_gives_the_same_tokens_through_its_adapter(tmp_path: Path) -> None:
    async with served(tmp_path, PREFILL, DECODE, version=BEFORE) as stack, vllm(tmp_path, BOTH) as alone:
        await alone.wait_ready()
        assert (await stack.info("d0"))["engine"] == {"name": "vllm", "version": BEFORE}
        for prompt in prompts(6, longest=600):
            answer = await stack.ask(prompt, NEW_TOKENS)
            wanted = (await alone.generate(prompt, NEW_TOKENS))["choices"][0]["token_ids"]
            assert (answer.error, answer.tokens, answer.trace["path"]) == (None, pieces(wanted), "remote")
