"""Tests with the bundled model: two engines must generate the same tokens as transformers."""

from __future__ import annotations

import pytest
from tests.worker import oracle
from tests.worker.collector import Collector
from tests.worker.in_process_kv import generate_remote
from tests.worker.oracle import MODEL, NEW_TOKENS, PROMPTS, SAMPLING, TIE
from tokenizers import Tokenizer

from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig


@pytest.mark.slow
def test_a_hundred_prompts_at_once_give_the_tokens_of_transformers() -> None:
    from transformers import AutoModelForCausalLM

    prompts = oracle.prompts()
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
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    judged = [oracle.ties_and_errors(model, prompt, tokens) for prompt, tokens in zip(prompts, found, strict=True)]
    ties, errors = sum(t for t, _ in judged), sum(e for _, e in judged)
    print(f"{PROMPTS * NEW_TOKENS} tokens: {ties} ties within {TIE:g} went another way, {errors} differ")
    assert errors == 0
    assert ties < 0.01 * PROMPTS * NEW_TOKENS


@pytest.mark.slow
def test_the_bundled_model_answers_a_chat_and_ends_by_itself() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    engine, sink = TorchEngine(MODEL, EngineConfig("m", "both")), Collector()
    prompt = tokenizer.encode("<|user|>Hello<|assistant|>").ids
    engine.generate(
        "r",
        prompt,
        len(prompt),
        SamplingParams(0, 64, temperature=0.0, stop_token_ids=engine.model.eos_token_ids),
        sink,
    )
    tokens = sink.finished()
    engine.stop(10)
    assert tokens[-1] in engine.model.eos_token_ids
    assert "language model" in tokenizer.decode(tokens)
