"""Prefill on one engine, decode on another: the same tokens as on one, and every block reported once and given back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.worker.collector import Collector
from tests.worker.engine.conftest import MakeEngine
from tests.worker.in_process_kv import InProcessKvSender, generate_remote

from disagg_worker.engine.api import EndEvent, ErrorEvent, NoCapacity, SamplingParams, TokenEvent
from disagg_worker.engine.core import TorchEngine

GREEDY = SamplingParams(seed=1, max_new_tokens=8, temperature=0.0)
PROMPT = [5, 9, 33, 2, 17, 40]


def _pair(make_engine: MakeEngine, budget: int = 2048) -> tuple[TorchEngine, TorchEngine]:
    return make_engine(role="prefill", max_batch_tokens=budget), make_engine(role="decode")


def _all_free(*engines: TorchEngine) -> bool:
    return all(e.load().blocks_free == e.load().blocks_total for e in engines)


class _Recorder:
    """A KvSender that only notes what it is told; `fail_at` raises at that layer."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.blocks: list[tuple[int, int]] = []
        self.committed: TokenEvent | None = None
        self.aborted: list[ErrorEvent] = []
        self.first_layer = threading.Event()
        self._fail_at = fail_at

    def layer_ready(self, layer: int, first_block: int, blocks: Sequence[memoryview]) -> None:
        if layer == self._fail_at:
            raise RuntimeError("no connection")
        self.blocks += [(layer, first_block + i) for i in range(len(blocks))]
        self.first_layer.set()

    def commit(self, first_token: TokenEvent) -> None:
        self.committed = first_token

    def abort(self, error: ErrorEvent) -> None:
        self.aborted.append(error)


@pytest.mark.parametrize("budget", [6, 20, 2048])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 61])
def test_two_engines_give_the_tokens_of_one(make_engine: MakeEngine, length: int, budget: int) -> None:
    prefill, decode = _pair(make_engine, budget)
    prompt = [(13 * i + length) % 64 for i in range(length)]
    for sampling in (GREEDY, SamplingParams(seed=9, max_new_tokens=8, temperature=1.3, frequency_penalty=0.3, repetition_penalty=1.2)):
        alone, remote = Collector(), Collector()
        decode.generate("alone", prompt, length, sampling, alone)
        sender = generate_remote(prefill, decode, "remote", prompt, length, sampling, remote)
        assert remote.finished() == alone.finished()
        assert sender.reported == {(layer, block): 1 for layer in range(3) for block in range(-(-length // 4))}
    assert _all_free(prefill, decode)


def test_many_hand_overs_at_once_do_not_mix(make_engine: MakeEngine) -> None:
    prefill, decode = _pair(make_engine, 64)
    prompts = [[(7 * i + j) % 64 for j in range(2 + 5 * i)] for i in range(10)]
    sinks = [Collector() for _ in prompts]
    for i, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        generate_remote(prefill, decode, str(i), prompt, len(prompt), replace(GREEDY, seed=i), sink)
    found = [s.finished() for s in sinks]
    for prompt, tokens in zip(prompts, found, strict=True):
        alone = Collector()
        prefill.generate("alone", prompt, len(prompt), GREEDY, alone)
        assert alone.finished() == tokens
    assert _all_free(prefill, decode)


@pytest.mark.parametrize("emitted", [1, 5])
def test_a_failover_to_another_pair_goes_on_with_the_same_tokens(make_engine: MakeEngine, emitted: int) -> None:
    prefill, decode = _pair(make_engine)
    sampling = replace(GREEDY, temperature=1.2, presence_penalty=0.5)
    whole, rest = Collector(), Collector()
    generate_remote(prefill, decode, "a", PROMPT, 6, sampling, whole)
    tokens = PROMPT + whole.finished()[:emitted]
    generate_remote(prefill, decode, "b", tokens, 6, sampling, rest)
    assert rest.finished() == whole.tokens[emitted:]
    assert [e.index for e in rest.events] == list(range(emitted, 8))


def test_a_prefill_without_a_sender_keeps_no_block(make_engine: MakeEngine) -> None:
    prefill, _ = _pair(make_engine)
    sink = Collector()
    prefill.prefill("r", PROMPT, 6, GREEDY, sink, None)
    assert sink.wait() == EndEvent("prefilled")
    assert len(sink.tokens) == 1
    assert _all_free(prefill)


def test_blocks_stay_leased_from_the_commit_to_the_release(make_engine: MakeEngine) -> None:
    prefill, _ = _pair(make_engine)
    sink, sender = Collector(), _Recorder()
    handle = prefill.prefill("r", PROMPT, 6, GREEDY, sink, sender)
    assert sink.wait() == EndEvent("prefilled")
    assert sender.committed == sink.events[0]
    assert prefill.load().blocks_leased == 2
    handle.cancel()  # it has ended: nothing changes
    assert prefill.load().blocks_leased == 2
    handle.release()
    handle.release()
    assert _all_free(prefill)
    assert not sender.aborted


@pytest.mark.parametrize(
    ("change", "reason"), [({"max_new_tokens": 1}, "length"), ({"stop_token_ids": tuple(range(64))}, "stop")], ids=["length", "stop"]
)
def test_a_first_token_that_ends_the_request_aborts_the_transfer(make_engine: MakeEngine, change: dict[str, object], reason: str) -> None:
    prefill, decode = _pair(make_engine)
    sink = Collector()
    sender = generate_remote(prefill, decode, "r", PROMPT, 6, replace(GREEDY, **change), sink)  # type: ignore[arg-type]
    assert sink.wait() == EndEvent(reason)
    assert len(sink.tokens) == 1
    assert sender.aborted is not None
    assert sender.aborted.code == "finished"
    assert _all_free(prefill, decode)


def test_a_cancel_in_the_middle_of_a_prompt_aborts_the_transfer_and_frees_both_sides(make_engine: MakeEngine) -> None:
    prefill, decode = _pair(make_engine, 2)
    reservation, sink = decode.reserve("r", 120, 128), Collector()
    sender = InProcessKvSender(decode, reservation, [1] * 120, 120, GREEDY)
    begun = threading.Event()
    forward = prefill._steps.network.forward

    def watched(*args: object) -> object:
        begun.set()
        return forward(*args)  # type: ignore[arg-type]

    prefill._steps.network.forward = watched  # type: ignore[method-assign, assignment]
    handle = prefill.prefill("r", [1] * 120, 120, GREEDY, sink, sender)
    assert begun.wait(30.0)
    sender.attach(handle)
    handle.cancel()
    end = sink.wait()
    assert isinstance(end, ErrorEvent)
    assert end.code == "cancelled"
    assert sender.aborted is not None
    assert _all_free(prefill, decode)


def test_a_release_before_the_end_stops_the_computation_first(make_engine: MakeEngine) -> None:
    prefill, _ = _pair(make_engine, 2)
    sink, sender = Collector(), _Recorder()
    handle = prefill.prefill("r", [1] * 120, 120, GREEDY, sink, sender)
    assert sender.first_layer.wait(30.0)
    handle.release()
    assert isinstance(sink.wait(), ErrorEvent)
    assert [e.code for e in sender.aborted] == ["cancelled"]
    assert _all_free(prefill)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_sender_that_raises_costs_only_its_own_request(make_engine: MakeEngine, layer: int) -> None:
    prefill, decode = _pair(make_engine)
    bad, good = Collector(), Collector()
    sender = _Recorder(fail_at=layer)
    handle = prefill.prefill("bad", PROMPT, 6, GREEDY, bad, sender)
    generate_remote(prefill, decode, "good", PROMPT, 6, GREEDY, good)
    end = bad.wait()
    assert isinstance(end, ErrorEvent)
    assert end.code == "internal"
    assert [e.code for e in sender.aborted] == ["internal"]
    assert sender.committed is None
    assert len(good.finished()) == 8
    handle.release()
    assert _all_free(prefill, decode)


def test_a_prompt_that_waits_for_blocks_starts_when_they_come_back(make_engine: MakeEngine) -> None:
    prefill, _ = _pair(make_engine)
    held, first = [], Collector()
    while prefill.load().blocks_free >= 60:
        sink = Collector()
        held.append(prefill.prefill("holder", [1] * 240, 240, GREEDY, sink, _Recorder()))
        sink.wait()
    prefill.prefill("late", [2] * 240, 240, GREEDY, first, None)
    held.pop().release()
    assert first.wait() == EndEvent("prefilled")
    for handle in held:
        handle.release()
    assert _all_free(prefill)


def test_without_a_reservation_nothing_is_prefilled(make_engine: MakeEngine) -> None:
    prefill, decode = _pair(make_engine)
    held = [decode.reserve("r", 4, 8) for _ in range(16)]
    with pytest.raises(NoCapacity):
        generate_remote(prefill, decode, "r", PROMPT, 6, GREEDY, Collector())
    assert prefill.load().steps_total["prefill"] == 0
    for reservation in held:
        reservation.release()
