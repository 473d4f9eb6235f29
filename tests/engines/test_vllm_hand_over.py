"""Two real vLLM engines hand a prompt over as the adapter makes them do."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.engine.vllm_process import BEFORE, HAND_OVER, MODEL, NEWEST, engines
from tokenizers import Tokenizer

from disagg_wire.roles import BOTH, DECODE, PREFILL

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]
LENGTHS = (1, 33, 400)
NEW_TOKENS = 16


def prompts() -> list[list[int]]:
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    ids: list[int] = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids
    return [ids[n : 2 * n] for n in LENGTHS]


@pytest.mark.parametrize("version", [NEWEST, BEFORE])
async def test_tokens_after_a_hand_over_are_those_of_one_engine_alone(tmp_path: Path, version: str) -> None:
    async with engines(tmp_path, PREFILL, DECODE, BOTH, version=version) as (prefill, decode, alone):
        for i, prompt in enumerate(prompts()):
            first = await prefill.generate(prompt, 1, request_id=f"r{i}", kv_transfer_params=HAND_OVER)
            found = await decode.generate(
                prompt, NEW_TOKENS, request_id=f"r{i}", kv_transfer_params=first["kv_transfer_params"]
            )
            wanted = await alone.generate(prompt, NEW_TOKENS)
            tokens = found["choices"][0]["token_ids"]
            assert tokens == wanted["choices"][0]["token_ids"]
            assert tokens[:1] == first["choices"][0]["token_ids"]
        computed, handed_over = [
            await decode.metric("vllm:prompt_tokens_by_source_total", source=source)
            for source in ("local_compute", "external_kv_transfer")
        ]
        # The only token of the shortest prompt is computed to have something to sample from.
        assert (computed, handed_over) == (1, sum(LENGTHS) - 1)
        assert await decode.metric("vllm:nixl_xfer_time_seconds_count") == len(LENGTHS)
    assert not any(engine.living() for engine in (prefill, decode, alone))
