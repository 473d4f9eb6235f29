"""Tests of requests at the same time: odd shapes of chunks and blocks, many threads, long prompts
and short ones, and a request that asks for too much.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.worker import checkpoints
from tests.worker.collector import Collector
from tests.worker.in_process_kv import InProcessKvSender, generate_remote

from disagg_protocol.errors import InvalidInput, NoCapacity
from disagg_protocol.events import TokenEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig

GREEDY = SamplingParams(seed=1, max_new_tokens=8, temperature=0.0)
DRAWN = SamplingParams(seed=9, max_new_tokens=8, temperature=1.3, frequency_penalty=0.3, repetition_penalty=1.2)
PROMPT = [5, 9, 33, 2, 17, 40]
CONFIG = EngineConfig(
    name="tiny", role="both", block_size_tokens=4, kv_cache_bytes=400 << 10, max_running=16, prefill_wait_s=0.0
)


class Make(Protocol):
    """Builds an engine of CONFIG with changes."""

    def __call__(self, **changes: Any) -> TorchEngine: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("interplay"), num_hidden_layers=3)


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    """Yield a function that builds engines, which are stopped at the end."""
    made: list[TorchEngine] = []

    def build(**changes: Any) -> TorchEngine:
        made.append(TorchEngine(folder, replace(CONFIG, **changes)))
        return made[-1]

    yield build
    for engine in made:
        engine.stop(10.0)


def _all_free(*engines: TorchEngine) -> bool:
    return all(e.load().blocks_free == e.load().blocks_total for e in engines)


@pytest.mark.parametrize("budget", [2, 6, 20, 2048])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 61])
def test_chunks_and_blocks_of_any_size_give_the_tokens_of_one_engine(make: Make, length: int, budget: int) -> None:
    prefill, decode = make(role="prefill", max_batch_tokens=budget), make(role="decode")
    prompt = [(13 * i + length) % 97 for i in range(length)]
    for sampling in (GREEDY, DRAWN):
        alone, remote = Collector(), Collector()
        decode.generate("alone", prompt, length, sampling, alone)
        sender = generate_remote(prefill, decode, "remote", prompt, length, sampling, remote)
        assert remote.finished() == alone.finished()
        assert sender.reported == {(layer, block): 1 for layer in range(3) for block in range(-(-length // 4))}
    assert _all_free(prefill, decode)


def test_many_hand_overs_at_once_do_not_mix(make: Make) -> None:
    prefill, decode = make(role="prefill", max_batch_tokens=64), make(role="decode")
    prompts = [[(7 * i + j) % 97 for j in range(2 + 5 * i)] for i in range(10)]
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        generate_remote(prefill, decode, str(i), prompt, len(prompt), replace(DRAWN, seed=i), sink)
    found = [s.finished() for s in sinks]
    for i, (prompt, tokens) in enumerate(zip(prompts, found, strict=True)):
        alone = Collector()
        prefill.generate("alone", prompt, len(prompt), replace(DRAWN, seed=i), alone)
        assert alone.finished() == tokens
    assert _all_free(prefill, decode)


def test_a_short_prompt_does_not_wait_until_a_long_one_is_computed(make: Make) -> None:
    engine, order = make(max_batch_tokens=8), list[str]()
    long = Collector(lambda e: order.append("long") if isinstance(e, TokenEvent) and e.index == 0 else None)
    short = Collector(lambda e: order.append("short") if isinstance(e, TokenEvent) and e.index == 0 else None)
    engine.generate("long", list(range(50)) * 4, 200, GREEDY, long)
    engine.generate("short", [1, 2], 2, GREEDY, short)
    assert len(long.finished()) == len(short.finished()) == 8
    assert order == ["short", "long"]


def test_a_sequence_that_would_outgrow_its_reservation_does_not_harm_the_others(make: Make) -> None:
    prefill, engine, other = make(role="prefill"), make(role="decode"), Collector()
    engine.generate("other", PROMPT, 6, replace(GREEDY, max_new_tokens=60), other)
    greedy, first = Collector(), Collector()
    sender = InProcessKvSender(engine, engine.reserve("r", 6, 10), PROMPT, 6, replace(GREEDY, max_new_tokens=50))
    sender.sink = greedy
    sender.attach(prefill.prefill("r", PROMPT, 6, replace(GREEDY, max_new_tokens=50), first, sender))
    first.wait()  # On a busy machine, the other request may end before the prefill has.
    assert len(other.finished()) == 60
    assert other.end is not None
    assert sender.aborted is not None or greedy.wait() is not None
    assert _all_free(engine)


def test_decode_refuses_to_emit_more_than_was_reserved(make: Make) -> None:
    engine = make(role="decode")
    reservation = engine.reserve("r", 6, 10)
    with pytest.raises(InvalidInput, match="max_new_tokens"):
        engine.decode(reservation, [*PROMPT, 1], 6, replace(GREEDY, max_new_tokens=50), Collector())
    reservation.release()
    assert _all_free(engine)


def test_callers_on_many_threads_lose_neither_requests_nor_blocks(make: Make) -> None:
    engine, sinks, lock = make(), list[Collector](), threading.Lock()

    def caller(n: int) -> None:
        for i in range(6):
            sink = Collector()
            try:
                handle = engine.generate(f"{n}-{i}", PROMPT[: 1 + i], 1 + i, replace(DRAWN, seed=n * 10 + i), sink)
            except NoCapacity:
                continue
            with lock:
                sinks.append(sink)
            if i % 3 == n % 3:
                handle.cancel()
            sink.wait()

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads)
    assert sinks
    assert not any(s.late for s in sinks)
    assert _all_free(engine)
