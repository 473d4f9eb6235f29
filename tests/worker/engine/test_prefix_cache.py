"""Tests of the prefix cache: computed KV is found again, bit for bit, by the same tenant in every
role, and by nobody else.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.worker.collector import Collector
from tests.worker.engine.engines import BLOCK_BYTES, GREEDY, MAX_LEN_BLOCKS, RANDOM, Keeper, Make, local, prompt
from tests.worker.in_process_kv import generate_remote

from disagg_protocol.errors import InvalidInput
from disagg_protocol.events import EndEvent
from disagg_worker.engine.block_pool import StaleReference
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.handles import HeldBlocks


def _generate(engine: TorchEngine, tokens: list[int], tenant: str = "") -> tuple[list[int], int | None]:
    """Return the tokens, and the number of cached tokens of the prompt."""
    sink = Collector()
    engine.generate("r", tokens, len(tokens), RANDOM, sink, tenant)
    found = sink.finished()
    assert all(e.cached_tokens is None for e in sink.events[1:])
    return found, sink.events[0].cached_tokens


@pytest.mark.parametrize(("n", "cached"), [(3, 0), (4, 0), (5, 4), (30, 28), (32, 28), (33, 32)])
def test_full_blocks_are_reused_and_at_least_one_token_is_computed(make: Make, n: int, cached: int) -> None:
    engine = make()
    first, second = _generate(engine, prompt(n)), _generate(engine, prompt(n))
    assert (first[1], second[1]) == (0, cached)
    assert first[0] == second[0]
    load = engine.load()
    assert (load.prompt_tokens_total, load.cached_tokens_total) == (2 * n - cached, cached)


def test_a_prompt_that_goes_on_after_a_shared_start_reuses_the_start_only(make: Make) -> None:
    engine = make()
    _generate(engine, prompt(20))
    other = [*prompt(10), 96, *prompt(20)[11:]]
    fresh, _ = _generate(make(prefix_cache=False), other)
    assert _generate(engine, other) == (fresh, 8)


def test_the_next_turn_of_a_conversation_finds_prompt_and_answer(make: Make) -> None:
    engine = make()
    answer, _ = _generate(engine, prompt(10))
    following = [*prompt(10), *answer, 5, 6]
    _, cached = _generate(engine, following)
    # The last token of the answer was never an input.
    assert cached == (10 + len(answer) - 1) // 4 * 4


def test_prompts_of_one_start_that_come_together_compute_it_once(make: Make) -> None:
    """Compute equal prompts, such as those of the choices of one request, and prompts that differ
    after a common start, in one batch or in chunks.
    """
    for budget in (1024, 64):
        rules = {"prefill_wait_s": 0.3, "max_batch_tokens": budget, "saturating_tokens": budget}
        engine = make(kv_cache_bytes=512 * BLOCK_BYTES, **rules)
        prompts = [prompt(201)] * 4 + [[*prompt(160), *prompt(41, i)] for i in (5, 9)]
        sinks = [Collector() for _ in prompts]
        for i, (tokens, sink) in enumerate(zip(prompts, sinks, strict=True)):
            engine.generate("r", tokens, len(tokens), replace(RANDOM, seed=i), sink)
        found = [s.finished() for s in sinks]
        assert engine.load().prompt_tokens_total == 201 + 3 * 1 + 2 * 41
        assert found == [local(make(prefix_cache=False), t, replace(RANDOM, seed=i)) for i, t in enumerate(prompts)]


def test_a_start_that_another_gives_up_is_computed_by_who_waited_for_it(make: Make) -> None:
    engine = make(max_batch_tokens=8, saturating_tokens=8)
    first, second = Collector(), Collector()
    handle = engine.generate("r", prompt(200), 200, GREEDY, first)
    engine.generate("r", prompt(200), 200, GREEDY, second)
    handle.cancel()
    assert second.finished() == local(make(), prompt(200))


def test_two_tenants_never_share_and_without_a_cache_nobody_does(make: Make) -> None:
    engine = make()
    expected, _ = _generate(engine, prompt(40), "one")
    assert _generate(engine, prompt(40), "two") == (expected, 0)
    assert _generate(engine, prompt(40), "") == (expected, 0)
    assert _generate(engine, prompt(40), "one") == (expected, 36)
    plain = make(prefix_cache=False)
    assert [_generate(plain, prompt(40)) for _ in range(2)] == [(expected, 0)] * 2


def test_prefill_hands_cached_blocks_over_like_computed_ones(make: Make) -> None:
    engine, keepers = make("prefill", max_batch_tokens=24), [Keeper(), Keeper()]
    cached: list[int | None] = []
    for keeper in keepers:
        sink = Collector()
        handle = engine.prefill("r", prompt(30), 30, GREEDY, sink, keeper)
        assert sink.wait() == EndEvent("prefilled")
        handle.release()
        cached.append(sink.events[0].cached_tokens)
    assert cached == [0, 28]
    fresh, reused = keepers
    assert sorted(reused.reported) == [(layer, block) for layer in range(2) for block in range(8)]
    assert {k: v for k, v in reused.parts.items() if k[1] < 7} == {k: v for k, v in fresh.parts.items() if k[1] < 7}
    assert reused.first is not None
    assert fresh.first is not None
    assert reused.first.token == fresh.first.token


def test_blocks_that_came_by_transfer_are_found_by_a_local_request(make: Make) -> None:
    prefill, decode = make("prefill"), make("decode")
    sink = Collector()
    generate_remote(prefill, decode, "r", prompt(30), 30, RANDOM, sink)
    expected = sink.finished()
    assert _generate(decode, prompt(30)) == (expected, 28)


def test_handed_over_blocks_serve_a_second_prefill_while_they_are_leased(make: Make) -> None:
    engine, sinks = make("prefill"), [Collector(), Collector()]
    handles = []
    for sink in sinks:
        handles.append(engine.prefill("r", prompt(30), 30, GREEDY, sink, Keeper()))
        sink.wait()
    assert engine.load().blocks_leased == 8 + 1
    handles[0].release()
    assert engine.load().blocks_leased == 8
    handles[1].release()
    assert engine.load().blocks_leased == 0


# ---- The host tier ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evicted_blocks_come_back_from_host_memory_bit_for_bit(make: Make, dtype: str) -> None:
    engine = make(
        kv_cache_bytes=MAX_LEN_BLOCKS * BLOCK_BYTES,
        host_cache_bytes=400 * BLOCK_BYTES,
        dtype=dtype,
        block_size_tokens=8,
    )
    total = engine.load().blocks_total * 8
    expected, _ = _generate(engine, prompt(200))
    names: list[bytes] = []
    assert engine._names is not None
    engine._names.extend(names, prompt(200), "")

    def content(i: int) -> bytes:
        ref = engine._store.pool.find(names[i])
        assert ref is not None
        return engine._memory.read(ref.block)

    before = [content(i) for i in range(24)]
    for salt in range(1, 2 + total // 200):  # Other prompts take all the room.
        _generate(engine, prompt(200, salt))
    assert engine._store.pool.find(names[23]) is None
    assert engine.load().host_cache_bytes > 0
    assert _generate(engine, prompt(200)) == (expected, 192)
    assert [content(i) for i in range(24)] == before


def test_a_host_tier_of_nothing_keeps_nothing(make: Make) -> None:
    engine = make(kv_cache_bytes=MAX_LEN_BLOCKS * BLOCK_BYTES)
    for salt in range(3):
        _generate(engine, prompt(200, salt))
    assert (engine.load().host_cache_bytes, _generate(engine, prompt(200))[1]) == (0, 0)


def test_a_reference_that_outlived_its_reservation_reads_nobodys_kv(make: Make) -> None:
    engine = make("decode", kv_cache_bytes=MAX_LEN_BLOCKS * BLOCK_BYTES)
    held = engine.reserve("r", 9, 21)
    copy = HeldBlocks(
        engine,
        "r",
        9,
        21,
        type(held.holding)(held.holding.state, [*held.holding.blocks], [*held.holding.generations]),
        engine._store,
        engine._memory,
    )
    copy.blocks(0, 1)
    held.release()
    others = engine.reserve("other", 200, 255)
    with pytest.raises(StaleReference):
        copy.blocks(0, 1)
    with pytest.raises(InvalidInput, match="has ended"):
        engine.decode(held, prompt(10), 9, GREEDY, Collector())
    others.release()


def test_kv_that_is_not_finite_is_not_found_again(make: Make) -> None:
    engine = make()
    expected, _ = _generate(engine, prompt(30))
    engine._memory.tensor.fill_(torch.nan)
    sink = Collector()
    engine.generate("r", prompt(30), 30, RANDOM, sink)
    sink.wait()
    assert sink.events == []
    assert _generate(engine, prompt(30)) == (expected, 0)
