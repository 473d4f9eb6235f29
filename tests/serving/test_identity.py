"""Tests of the whole disaggregated path (router, prefill and decode processes, KV over TCP), which
must generate the same tokens as transformers.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.serving import stack
from tests.worker import oracle
from tests.worker.oracle import MODEL, NEW_TOKENS, PROMPTS, TIE

from disagg_router.dispatch.request_state import RequestState
from disagg_router.dispatch.trace import Trace
from disagg_router.router import Router
from disagg_router.workers.worker_info import Identity

SAMPLING = {"seed": 0, "max_new_tokens": NEW_TOKENS, "temperature": 0.0, "min_tokens": NEW_TOKENS}


def _model(router: Router) -> Identity:
    return next(w.identity for w in router.table.workers())


async def _generate(router: Router, number: int, prompt: list[int]) -> tuple[list[int], Trace]:
    state, trace = RequestState(f"r{number}", _model(router), tuple(prompt), SAMPLING, 1), Trace()
    async for _ in router.dispatcher.run(state, trace, time.monotonic()):
        pass
    return state.emitted, trace


@pytest.mark.slow
async def test_a_hundred_prompts_at_once_through_router_and_tcp_give_the_tokens_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    prompts = oracle.prompts()
    settings = {"dtype": "float32", "kv_cache_bytes": str(512 << 20), "max_running": str(PROMPTS)}
    async with (
        stack.workers(tmp_path, ["prefill", "decode"], **settings) as processes,
        stack.router(tmp_path) as router,
    ):
        async with asyncio.timeout(240):
            results = await asyncio.gather(*(_generate(router, i, p) for i, p in enumerate(prompts)))
    assert [p.returncode for p in processes.values()] == [0, 0]
    assert Counter(trace.path for _, trace in results) == {"remote": PROMPTS}
    assert all((trace.kv_bytes or 0) > 0 and trace.attempts == 1 for _, trace in results)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    judged = [oracle.ties_and_errors(model, p, tokens) for p, (tokens, _) in zip(prompts, results, strict=True)]
    ties, errors = sum(t for t, _ in judged), sum(e for _, e in judged)
    print(f"{PROMPTS * NEW_TOKENS} tokens: {ties} ties within {TIE:g} went another way, {errors} differ")
    assert errors == 0
    assert ties < 0.01 * PROMPTS * NEW_TOKENS


@pytest.mark.slow
async def test_a_decode_worker_killed_mid_stream_costs_no_token(tmp_path: Path) -> None:
    wanted = 400
    sampling = SAMPLING | {"max_new_tokens": wanted, "min_tokens": wanted, "temperature": 1.0, "seed": 5}
    prompt = oracle.prompts()[4]
    async with (
        stack.workers(tmp_path, ["prefill", "decode", "decode"], dtype="bfloat16") as processes,
        stack.router(tmp_path) as router,
    ):
        async with asyncio.timeout(120):
            quiet = RequestState("quiet", _model(router), tuple(prompt), sampling, 4)
            async for _ in router.dispatcher.run(quiet, Trace(), time.monotonic()):
                pass
            disturbed, trace, killed = (
                RequestState("disturbed", _model(router), tuple(prompt), sampling, 4),
                Trace(),
                False,
            )
            async for _ in router.dispatcher.run(disturbed, trace, time.monotonic()):
                if len(disturbed.emitted) == 50 and not killed and trace.decode is not None:
                    processes[trace.decode.pod].kill()
                    killed = True
    assert killed
    assert trace.attempts > 1
    assert disturbed.emitted == quiet.emitted
    assert len(quiet.emitted) == wanted
