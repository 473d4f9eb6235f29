"""Tests of cancels, stops and faults: they cost only the requests that they concern, and nothing is
lost in any order of events.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples
from tests.worker.collector import Collector
from tests.worker.engine.engines import BLOCK_BYTES, GREEDY, MAX_LEN_BLOCKS, RANDOM, Gate, Keeper, Make, local, prompt
from tests.worker.in_process_kv import InProcessKvSender, generate_remote

from disagg_protocol.errors import NoCapacity
from disagg_protocol.events import EndEvent, ErrorEvent, Event, TokenEvent
from disagg_worker.engine import contract
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.queues import Queues
from disagg_worker.engine.steps import Steps
from disagg_worker.execution.executor import Step

# ---- Cancels, stops and faults ----


def test_prompts_wait_for_blocks_and_the_long_one_is_not_overtaken(make: Make) -> None:
    engine = make("prefill", kv_cache_bytes=MAX_LEN_BLOCKS * BLOCK_BYTES, max_batch_tokens=600)
    first_sink, order = Collector(), []
    first = engine.prefill("a", prompt(200), 200, GREEDY, first_sink, Keeper())
    first_sink.wait()
    sinks: list[Collector] = []
    handles: list[contract.PrefillHandle] = []
    for name, n in (("long", 180), ("short", 8)):
        sinks.append(Collector(lambda e, name=name: order.append(name) if isinstance(e, TokenEvent) else None))  # type: ignore[misc]
        handles.append(engine.prefill(name, prompt(n), n, GREEDY, sinks[-1], Keeper()))
    assert engine.load().waiting_requests == 2
    first.release()
    assert [s.wait() for s in sinks] == [EndEvent("prefilled")] * 2
    assert order[0] == "long"
    for handle in handles:
        handle.release()


def test_cancel_frees_at_once_wherever_the_request_is(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine = make()
    running, waiting, keeper = Collector(), Collector(), Keeper()
    run = engine.generate("running", prompt(5), 5, GREEDY, running)
    assert gate.reached.wait(30)
    wait = engine.prefill("waiting", prompt(5), 5, GREEDY, waiting, keeper)
    run.cancel()
    wait.cancel()
    wait.cancel()
    gate.open.set()
    for sink in (running, waiting):
        end = sink.wait()
        assert isinstance(end, ErrorEvent)
        assert end.code == "cancelled"
    assert keeper.aborted == ["cancelled"]
    wait.release()
    run.cancel()
    assert engine.load().blocks_free == engine.load().blocks_total
    assert len(local(engine, prompt(5))) == 12


def test_stop_ends_what_runs_and_refuses_what_comes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine, sink = make(), Collector()
    engine.generate("r", prompt(5), 5, GREEDY, sink)
    assert gate.reached.wait(30)
    held = engine.reserve("r", 5, 10)
    engine.stop(0)
    gate.open.set()
    end = sink.wait()
    assert isinstance(end, ErrorEvent)
    assert (end.code, end.retryable) == ("draining", True)
    engine.stop(10)
    assert not engine.alive()
    for refused in (
        lambda: engine.generate("r", prompt(5), 5, GREEDY, Collector()),
        lambda: engine.prefill("r", prompt(5), 5, GREEDY, Collector(), None),
        lambda: engine.reserve("r", 5, 10),
        lambda: engine.decode(held, prompt(6), 5, GREEDY, Collector()),
    ):
        with pytest.raises(NoCapacity, match="stopping"):
            refused()
    held.release()


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_an_exception_in_a_step_fails_its_requests_and_the_next_is_served(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engine, sink = make(), Collector()
    with monkeypatch.context() as patch:
        patch.setattr(Steps, kind, lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        engine.generate("r", prompt(5), 5, GREEDY, sink)
        end = sink.wait()
    assert isinstance(end, ErrorEvent)
    assert (end.code, end.retryable) == ("internal", True)
    assert len(local(engine, prompt(5))) == 12
    assert engine.alive()


def test_logits_that_are_not_finite_fail_one_request_only(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    expected = local(engine, prompt(7))
    executor = engine._executor
    run = executor.run

    def poisoned(step: Step, *rest: Any) -> torch.Tensor:
        logits = run(step, *rest)
        logits[step.batch.token_ids[step.batch.last] == prompt(5)[-1]] = torch.nan
        return logits

    monkeypatch.setattr(executor, "run", poisoned)
    bad, good = Collector(), Collector()
    engine.generate("bad", prompt(5), 5, GREEDY, bad)
    engine.generate("good", prompt(7), 7, GREEDY, good)
    end = bad.wait()
    assert isinstance(end, ErrorEvent)
    assert "not finite" in end.message
    assert good.finished() == expected


@pytest.mark.parametrize("method", ["layer_ready", "commit", "abort"])
def test_a_sender_that_raises_fails_its_own_request_only(make: Make, method: str) -> None:
    class Faulty(Keeper):
        pass

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    setattr(Faulty, method, fail)
    engine, bad, good = make("prefill", max_batch_tokens=1000, prefill_wait_s=0.2), Collector(), Collector()
    sampling = replace(GREEDY, max_new_tokens=1) if method == "abort" else GREEDY
    handles = [
        engine.prefill("bad", prompt(9), 9, sampling, bad, Faulty()),
        engine.prefill("good", prompt(9), 9, GREEDY, good, Keeper()),
    ]
    end = bad.wait()
    assert isinstance(end, ErrorEvent)
    assert end.code == "internal"
    assert good.wait() == EndEvent("prefilled")
    for handle in handles:
        handle.release()


def test_a_sink_that_raises_fails_its_own_request_only(make: Make) -> None:
    engine, good, told = make(), Collector(), threading.Event()

    def bad(event: Event) -> None:
        told.set()
        raise RuntimeError("nobody there")

    engine.generate("bad", prompt(5), 5, GREEDY, bad)
    assert told.wait(30)
    engine.generate("good", prompt(6), 6, GREEDY, good)
    assert len(good.finished()) == 12


def test_a_loop_that_fails_leaves_no_request_without_an_answer(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine, sink = make(), Collector()
    engine.generate("r", prompt(5), 5, GREEDY, sink)
    assert gate.reached.wait(30)
    monkeypatch.setattr(Queues, "take_prefill", lambda *_: 1 / 0)
    gate.open.set()
    assert isinstance(sink.wait(), ErrorEvent)
    engine.stop(10)
    assert not engine.alive()


# ---- Any order of events ----

acts = st.tuples(
    st.sampled_from(["generate", "remote", "prefill", "cancel", "release"]),
    st.integers(1, 120),
    st.integers(1, 10),
    st.integers(0, 9),
)


@settings(max_examples=examples(15))
@given(st.lists(acts, min_size=1, max_size=25))
def test_whatever_happens_every_request_ends_once_and_every_block_comes_back(
    folder: Path, ops: list[tuple[str, int, int, int]]
) -> None:
    config = EngineConfig(
        "t", "both", block_size_tokens=4, kv_cache_bytes=80 * BLOCK_BYTES, max_batch_tokens=48, prefill_wait_s=0.0
    )
    prefill, decode = TorchEngine(folder, config), TorchEngine(folder, config)
    sinks: list[Collector] = []
    handles: list[Any] = []
    for kind, n, new, which in ops:
        sink, sampling = Collector(), replace(RANDOM, max_new_tokens=new, seed=which)
        try:
            if kind == "generate":
                handles.append(decode.generate("r", prompt(n), n, sampling, sink))
            elif kind == "prefill":
                handles.append(prefill.prefill("r", prompt(n), n, sampling, sink, Keeper()))
            elif kind == "remote":
                sender: InProcessKvSender = generate_remote(prefill, decode, "r", prompt(n), n, sampling, sink)
                handles.append(sender)
            elif handles and hasattr(handles[which % len(handles)], kind):
                getattr(handles[which % len(handles)], kind)()
                continue
            else:
                continue
        except NoCapacity:
            continue
        sinks.append(sink)
    for sink, handle in zip(sinks, handles, strict=True):
        if not isinstance(handle, InProcessKvSender) and handle._sequence.sender is not None:
            handle.release()  # This cancels an unfinished prefill.
        sink.wait()
        assert sink.late == []
    prefill.stop(10)
    decode.stop(10)
    for engine in (prefill, decode):
        load = engine.load()
        assert (load.blocks_free, load.blocks_used, load.blocks_leased) == (load.blocks_total, 0, 0)
