"""What the two engines generate is what transformers generates, token for token, on the bundled model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tests.worker.collector import Collector
from tests.worker.in_process_kv import generate_remote
from tokenizers import Tokenizer

from disagg_worker.engine.api import SamplingParams
from disagg_worker.engine.config import EngineConfig
from disagg_worker.engine.core import TorchEngine

MODEL = Path(__file__).parents[3] / "models" / "stdlib-llama"
PROMPTS, NEW_TOKENS, LONGEST_TOKENS = 100, 16, 1500
# Two logits nearer than this are a tie: the order of a float32 sum decides it, and either token is right.
TIE = 1e-4
SAMPLING = SamplingParams(seed=0, max_new_tokens=NEW_TOKENS, temperature=0.0)


def _prompts() -> list[list[int]]:
    """Real text, chats and noise; lengths from 1 to 1,500 spread evenly over their logarithm."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids: list[int] = tokenizer.encode((json.__doc__ or "") + Path(json.__file__).read_text(encoding="utf-8") * 2).ids
    rng = random.Random(7)
    lengths = [1, LONGEST_TOKENS, *(int(LONGEST_TOKENS ** rng.random()) for _ in range(PROMPTS - 2))]
    prompts = []
    for i, n in enumerate(lengths):
        start = rng.randrange(len(ids) - n)
        prompts.append([rng.randrange(2048) for _ in range(n)] if i % 10 == 9 else ids[start : start + n])
    return prompts


@torch.inference_mode()
def _ties_and_errors(model: torch.nn.Module, prompt: list[int], found: list[int]) -> tuple[int, int]:
    """Each token against the best of transformers' logits after the same tokens: (ties that went another way, real differences)."""
    logits = model(torch.tensor([prompt + found[:-1]])).logits[0, len(prompt) - 1 :]
    short = logits.max(dim=-1).values - logits[torch.arange(len(found)), torch.tensor(found)]
    return int(((short > 0) & (short <= TIE)).sum()), int((short > TIE).sum())


@pytest.mark.slow
def test_a_hundred_prompts_at_once_give_the_tokens_of_transformers() -> None:
    from transformers import AutoModelForCausalLM

    prompts = _prompts()
    prefill, decode = (
        TorchEngine(MODEL, EngineConfig("m", role, dtype="float32", kv_cache_bytes=512 << 20, max_running=PROMPTS))
        for role in ("prefill", "decode")
    )
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        generate_remote(prefill, decode, str(i), prompt, len(prompt), SAMPLING, sink)
    found = [s.finished() for s in sinks]
    loads = [e.load() for e in (prefill, decode)]
    for engine in (prefill, decode):
        engine.stop(10)
    assert [load.blocks_free for load in loads] == [load.blocks_total for load in loads]
    assert all(len(tokens) == NEW_TOKENS for tokens in found)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    judged = [_ties_and_errors(model, prompt, tokens) for prompt, tokens in zip(prompts, found, strict=True)]
    ties, errors = sum(t for t, _ in judged), sum(e for _, e in judged)
    print(f"{PROMPTS * NEW_TOKENS} tokens: {ties} ties within {TIE:g} went another way, {errors} differ")
    assert errors == 0
    assert ties < 0.01 * PROMPTS * NEW_TOKENS


@pytest.mark.slow
def test_the_bundled_model_answers_a_chat_and_ends_by_itself() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    engine, sink = TorchEngine(MODEL, EngineConfig("m", "both")), Collector()
    prompt = tokenizer.encode("<|user|>Hello<|assistant|>").ids
    engine.generate("r", prompt, len(prompt), SamplingParams(0, 64, temperature=0.0, stop_token_ids=engine.model.eos_token_ids), sink)
    tokens = sink.finished()
    engine.stop(10)
    assert tokens[-1] in engine.model.eos_token_ids
    assert "language model" in tokenizer.decode(tokens)
