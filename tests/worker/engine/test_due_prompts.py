"""Tests of due first tokens in an engine with a real model: prompts that can be on time overtake
those that cannot, and nothing else changes.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.worker.collector import Collector
from tests.worker.engine.engines import GREEDY, Keeper, Make, Turnstile, local, prompt

from disagg_protocol.events import Event, TokenEvent
from disagg_worker.engine.core import TorchEngine

ONE = replace(GREEDY, max_new_tokens=1)


class Order:
    """The order in which first tokens came."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def sink(self, name: str) -> Collector:
        def note(event: Event) -> None:
            if isinstance(event, TokenEvent) and event.index == 0:
                self.names.append(name)

        return Collector(note)


def _held(engine: TorchEngine, turnstile: Turnstile) -> Collector:
    """Hold the engine before its first prefill step, so that all further requests wait."""
    sink = Collector()
    engine.generate("held", prompt(4), 4, ONE, sink)
    assert turnstile.reached.wait(30)
    return sink


@pytest.mark.parametrize("due", [True, False])
@pytest.mark.parametrize("role", ["prefill", "both"])
def test_a_newcomer_that_can_be_on_time_overtakes_a_queue_of_late_ones(
    make: Make, monkeypatch: pytest.MonkeyPatch, role: str, due: bool
) -> None:
    turnstile, engine, order = Turnstile(monkeypatch), make(role), Order()
    sinks = [_held(engine, turnstile)]
    now_s = time.monotonic()
    for name, due_s in [*((f"late {i}", now_s - 1) for i in range(4)), ("far", now_s + 2000), ("near", now_s + 1000)]:
        tokens, sink, at_s = prompt(60, len(sinks)), order.sink(name), due_s if due else None
        if role == "both":
            engine.generate(name, tokens, 60, ONE, sink, due_s=at_s)
        else:
            engine.prefill(name, tokens, 60, ONE, sink, None, due_s=at_s)
        sinks.append(sink)
    turnstile.let(1000)
    found = [s.finished() for s in sinks]
    late = [f"late {i}" for i in range(4)]
    assert order.names == (["near", "far", *late] if due else [*late, "far", "near"])
    assert engine.load().late_prompts_total == (4 if due else 0)
    assert found[1:] == [local(make(), prompt(60, i), ONE) for i in range(1, 7)]


def test_handed_over_kv_is_whole_when_a_long_prompt_is_overtaken_between_its_chunks(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, keeper = Keeper(), Keeper()
    for_reference = Collector()
    handle = make("prefill").prefill("r", prompt(200), 200, GREEDY, for_reference, alone)
    for_reference.wait()
    handle.release()
    turnstile, engine, order = Turnstile(monkeypatch), make("prefill"), Order()
    long = order.sink("long")
    handle = engine.prefill("long", prompt(200), 200, GREEDY, long, keeper, due_s=time.monotonic() + 1000)
    assert turnstile.reached.wait(30)
    others = [order.sink(f"near {i}") for i in range(3)]
    for i, sink in enumerate(others):
        engine.prefill("near", prompt(60, i + 1), 60, GREEDY, sink, None, due_s=time.monotonic() + 100)
    turnstile.let(1000)
    for sink in (*others, long):
        sink.wait()
    handle.release()
    assert order.names == ["near 0", "near 1", "near 2", "long"]
    assert (keeper.first, sorted(keeper.reported)) == (alone.first, sorted(alone.reported))


def test_the_pace_is_learned_from_the_steps_that_were_made(make: Make) -> None:
    engine = make(prefix_cache=False)
    for i in range(3):
        local(engine, prompt(60, i), ONE)
    load = engine.load()
    took_s = load.work_total["prefill_batch_seconds"]
    assert 0 < engine._steps.pace.pace().batch_s(64) <= took_s


def test_who_would_end_too_late_at_that_pace_goes_last(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    turnstile, engine, order = Turnstile(monkeypatch), make(), Order()
    for _ in range(3):
        engine._steps.pace.note(60, 1000.0)
    sinks = [_held(engine, turnstile), order.sink("soon"), order.sink("in an hour")]
    for i, due_in_s in ((1, 300.0), (2, 3600.0)):
        engine.generate("r", prompt(60, i), 60, ONE, sinks[i], due_s=time.monotonic() + due_in_s)
    turnstile.let(1000)
    for sink in sinks:
        sink.finished()
    assert order.names == ["in an hour", "soon"]
