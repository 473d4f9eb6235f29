"""Tests of masks that take long: nobody waits for them but the request that asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.worker.collector import Collector

from disagg_protocol.errors import InvalidInput
from disagg_protocol.events import EndEvent, ErrorEvent
from disagg_protocol.sampling_params import SamplingParams, Structured
from disagg_worker.engine import structured
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.masks import Masks
from disagg_worker.engine.structured import GrammarError, Grammars, GrammarState

MODEL = Path(__file__).parents[3] / "models/stdlib-llama"
WANTED = Structured("regex", "[a-f]{12,14}")
PLAIN = SamplingParams(seed=1, max_new_tokens=24, temperature=0.0)


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    made = TorchEngine(MODEL, EngineConfig("m", "both", dtype="float32", prefill_wait_s=0.0))
    yield made
    made.stop(10)


def shaped(engine: TorchEngine, seed: int = 1) -> SamplingParams:
    stops = tuple(engine.model.eos_token_ids)
    return SamplingParams(seed=seed, max_new_tokens=40, temperature=1.0, stop_token_ids=stops, structured=WANTED)


def generate(engine: TorchEngine, sampling: SamplingParams) -> Collector:
    sink = Collector()
    engine.generate("r", [5, 6, 7], 3, sampling, sink)
    return sink


@pytest.mark.parametrize("after", [0, 1, 4])
def test_nobody_waits_for_the_mask_of_another_request(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    alone, plain = generate(engine, shaped(engine)).finished(), generate(engine, PLAIN).finished()
    reached, go_on, allowed = threading.Event(), threading.Event(), GrammarState.allowed

    def slow(state: GrammarState, emitted: Sequence[int]) -> Any:
        if len(emitted) == after:
            reached.set()
            assert go_on.wait(60)
        return allowed(state, emitted)

    monkeypatch.setattr(GrammarState, "allowed", slow)
    waits = generate(engine, shaped(engine))
    assert reached.wait(60)
    # From its prompt to its last token, while the mask is not there.
    assert generate(engine, PLAIN).finished() == plain
    assert (waits.end, len(waits.tokens)) == (None, after)
    go_on.set()
    assert waits.finished() == alone


def test_what_is_cancelled_while_its_mask_is_computed_ends(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, allowed, sink = threading.Event(), GrammarState.allowed, Collector()
    monkeypatch.setattr(GrammarState, "allowed", lambda state, emitted: go_on.wait(60) and allowed(state, emitted))
    handle = engine.generate("r", [5, 6, 7], 3, shaped(engine), sink)
    handle.cancel()
    end = sink.wait()
    assert isinstance(end, ErrorEvent)
    assert end.code == "cancelled"
    go_on.set()
    assert engine.load().blocks_used == 0


def test_a_format_that_takes_too_much_computing_ends_its_request(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, clock, allowed = [0.0], time.thread_time, GrammarState.allowed

    def costly(state: GrammarState, emitted: Sequence[int]) -> Any:
        used[0] += 0.4
        return allowed(state, emitted)

    monkeypatch.setattr(GrammarState, "allowed", costly)
    monkeypatch.setattr(time, "thread_time", lambda: clock() + used[0])
    sink = generate(engine, shaped(engine))
    end = sink.wait()
    assert isinstance(end, ErrorEvent)
    assert (end.code, end.retryable) == ("invalid_request", False)
    assert "too much computing" in end.message
    assert len(sink.tokens) == 2


def test_many_formats_at_once_are_what_they_are_alone(engine: TorchEngine) -> None:
    alone = [generate(engine, shaped(engine, seed)).finished() for seed in range(8)]
    plain = generate(engine, PLAIN).finished()
    together = [generate(engine, shaped(engine, seed)) for seed in range(8)]
    beside = generate(engine, PLAIN)
    assert [sink.finished() for sink in together] == alone
    assert beside.finished() == plain
    assert all(isinstance(sink.end, EndEvent) for sink in together)


@pytest.fixture
def grammars() -> Grammars:
    return Grammars(MODEL / "tokenizer.json", 2048, [0])


def test_a_mask_is_computed_when_it_is_asked_for_and_only_once(grammars: Grammars) -> None:
    told: list[int] = []
    masks = Masks(grammars, lambda: told.append(1), 1, 1.0, 0.02)
    mask = masks.start(WANTED, [])
    assert mask.wait(60)
    assert mask.ready
    first = mask.allowed([])
    assert mask.allowed([]) is first
    token = int(first.nonzero()[0][0])
    mask.ask([token])
    assert mask.wait(60)
    assert np.array_equal(mask.allowed([token]), masks.start(WANTED, [token]).allowed([token]))
    assert told
    masks.close()
    mask.ask([token, token])
    assert not mask.wait(0)


def test_an_error_stays(grammars: Grammars) -> None:
    masks = Masks(grammars, lambda: None, 1, 1.0, 0.02)
    mask = masks.start(WANTED, [1])
    assert mask.wait(60)
    for emitted in ([1], [1, 2]):
        with pytest.raises(GrammarError):
            mask.allowed(emitted)
    wrong = masks.start(Structured("regex", "("), [])
    assert wrong.wait(60)
    with pytest.raises(InvalidInput):
        wrong.allowed([])
    masks.close()


def test_compiled_grammars_are_kept_by_their_size(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "_CACHED_BYTES", 1 << 20)
    for i in range(6):
        grammars.compile(Structured("choice", f'["{i:04}", "{"x" * 1500}"]'))
    assert len(grammars._compiled) == 2
    for i in range(40):
        grammars.compile(Structured("choice", f'["{i:04}"]'))
    assert grammars.cached_bytes <= 1 << 20
    assert len(grammars._compiled) == 16
