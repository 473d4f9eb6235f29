"""Tests of requests that the engine fails on: they cost the others nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.worker.collector import Collector
from tests.worker.engine.engines import GREEDY, RANDOM, Make, local, prompt

from disagg_protocol.events import ErrorEvent
from disagg_worker.engine import steps
from disagg_worker.engine.sampler import Row, Sampled, sample_rows
from disagg_worker.engine.steps import Steps


def name_of(item: Any) -> str:
    name: str = (item[0] if isinstance(item, tuple) else item).request_id
    return name


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_step_that_fails_because_of_one_request_costs_that_one_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engine, compute = make(prefill_wait_s=0.2), getattr(Steps, kind)
    alone = [local(engine, prompt(5 + i), replace(RANDOM, seed=i)) for i in range(6)]

    def poisoned(steps: Steps, items: Sequence[Any]) -> Any:
        if any(name_of(item) == "bad" for item in items):
            raise RuntimeError("a device-side assert")
        return compute(steps, items)

    monkeypatch.setattr(Steps, kind, poisoned)
    sinks = [Collector() for _ in alone]
    for i, sink in enumerate(sinks[:3]):
        engine.generate("good", prompt(5 + i), 5 + i, replace(RANDOM, seed=i), sink)
    bad = Collector()
    engine.generate("bad", prompt(7), 7, RANDOM, bad)
    for i, sink in enumerate(sinks[3:], 3):
        engine.generate("good", prompt(5 + i), 5 + i, replace(RANDOM, seed=i), sink)
    assert [sink.finished() for sink in sinks] == alone
    end = bad.wait()
    assert isinstance(end, ErrorEvent)
    assert (end.code, end.retryable) == ("request_failed", True)


@pytest.mark.parametrize("token", [-1, 97, 1 << 40])
def test_a_token_outside_of_the_vocabulary_ends_its_own_request(
    make: Make, monkeypatch: pytest.MonkeyPatch, token: int
) -> None:
    engine = make()

    def sample(logits: Any, rows: Sequence[Row]) -> list[Sampled | Exception]:
        found = sample_rows(logits, rows)
        size = logits.shape[-1]
        return [
            Sampled(size if token == 97 else token, None, ()) if row.params.seed == 99 else outcome
            for row, outcome in zip(rows, found, strict=True)
        ]

    wanted = local(engine, prompt(5))
    monkeypatch.setattr(steps, "sample_rows", sample)
    good, bad = Collector(), Collector()
    engine.generate("good", prompt(5), 5, GREEDY, good)
    engine.generate("bad", prompt(6), 6, replace(GREEDY, seed=99), bad)
    assert good.finished() == wanted
    end = bad.wait()
    assert isinstance(end, ErrorEvent)
    assert bad.tokens == []
