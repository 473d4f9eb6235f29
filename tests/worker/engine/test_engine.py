"""The engine over real weights and a real cache: what it gives, what it holds, and what a fault costs whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.worker import random_models
from tests.worker.collector import Collector
from tests.worker.in_process_kv import InProcessKvSender, generate_remote

from disagg_worker.engine import api
from disagg_worker.engine.api import EndEvent, ErrorEvent, InvalidInput, ModelError, NoCapacity, SamplingParams, TokenEvent
from disagg_worker.engine.config import EngineConfig, Role
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.steps import Steps

GREEDY = SamplingParams(seed=1, max_new_tokens=12, temperature=0.0)
RANDOM = SamplingParams(seed=5, max_new_tokens=12, temperature=0.9, top_p=0.9, presence_penalty=0.4)
# One block of 4 tokens of the tiny model in float32.
BLOCK_BYTES = 4 * 2 * 2 * 2 * 8 * 4
MAX_LEN_BLOCKS = 256 // 4
Make = Callable[..., TorchEngine]


def prompt(n: int, salt: int = 0) -> list[int]:
    return [(7 * i * i + 3 * i + salt) % 96 + 1 for i in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    """Engines that are stopped at the end, after which no block may be missing."""
    made: list[TorchEngine] = []

    def build(role: Role = "both", **changes: Any) -> TorchEngine:
        settings = {"block_size_tokens": 4, "kv_cache_bytes": 256 * BLOCK_BYTES, "max_batch_tokens": 64, "prefill_wait_s": 0.0} | changes
        made.append(TorchEngine(folder, EngineConfig("tiny", role, **settings)))
        return made[-1]

    yield build
    for engine in made:
        engine.stop(10)
        load = engine.load()
        assert (load.blocks_free, load.waiting_requests, load.running_requests) == (load.blocks_total, 0, 0)


def local(engine: TorchEngine, tokens: Sequence[int], sampling: SamplingParams = GREEDY, prompt_tokens: int | None = None) -> list[int]:
    sink = Collector()
    engine.generate("r", tokens, prompt_tokens or len(tokens), sampling, sink)
    return sink.finished()


class Keeper:
    """A KvSender that keeps the bytes; it neither answers nor releases by itself."""

    def __init__(self) -> None:
        self.parts: dict[tuple[int, int], bytes] = {}
        self.reported: list[tuple[int, int]] = []
        self.first: TokenEvent | None = None
        self.aborted: list[str] = []

    def layer_ready(self, layer: int, first_block: int, blocks: Sequence[memoryview]) -> None:
        for i, block in enumerate(blocks, first_block):
            self.reported.append((layer, i))
            self.parts[layer, i] = bytes(block)

    def commit(self, first_token: TokenEvent) -> None:
        self.first = first_token

    def abort(self, error: ErrorEvent) -> None:
        self.aborted.append(error.code)


class Gate:
    """Holds the engine's thread at its next decode step, so that a test can act while a request runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        original = Steps.decode

        def decode(steps: Steps, running: Any) -> Any:
            self.reached.set()
            if not self.open.wait(30):
                raise TimeoutError("the gate stayed shut")
            return original(steps, running)

        monkeypatch.setattr(Steps, "decode", decode)


# ---- what it gives ----


@pytest.mark.parametrize("sampling", [GREEDY, RANDOM, replace(RANDOM, logprobs=2)], ids=["greedy", "random", "logprobs"])
def test_prefill_and_decode_engines_give_the_tokens_of_one_engine(make: Make, sampling: SamplingParams) -> None:
    both, prefill, decode = make(), make("prefill"), make("decode")
    for n in (1, 3, 4, 5, 63, 150):
        sink, remote = Collector(), Collector()
        both.generate("r", prompt(n), n, sampling, sink)
        generate_remote(prefill, decode, "r", prompt(n), n, sampling, remote)
        assert remote.finished() == sink.finished()
        assert [e.index for e in remote.events] == list(range(12))
        if sampling.logprobs:
            assert [len(e.top_logprobs) for e in remote.events] == [2] * 12
            assert [e.logprob for e in remote.events] == pytest.approx([e.logprob for e in sink.events], abs=1e-4)


def test_requests_submitted_together_give_the_tokens_they_give_alone(make: Make) -> None:
    engine = make()
    requests = [(prompt(1 + 11 * i, i), replace(RANDOM, seed=i, max_new_tokens=3 + i)) for i in range(10)]
    sinks = [Collector() for _ in requests]
    for (tokens, sampling), sink in zip(requests, sinks, strict=True):
        engine.generate("r", tokens, len(tokens), sampling, sink)
    together = [s.finished() for s in sinks]
    assert together == [local(engine, tokens, sampling) for tokens, sampling in requests]


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_request_continued_elsewhere_goes_on_with_the_same_tokens(make: Make, cut: int) -> None:
    first, second, decode = make(), make("prefill"), make("decode")
    whole = local(first, prompt(20), RANDOM)
    sink = Collector()
    generate_remote(second, decode, "r", [*prompt(20), *whole[:cut]], 20, RANDOM, sink)
    assert sink.finished() == whole[cut:]
    assert sink.events[0].index == cut


def test_bfloat16_caches_are_handed_over_whole(make: Make) -> None:
    both, prefill, decode = (make(role, dtype="bfloat16") for role in ("both", "prefill", "decode"))
    sink = Collector()
    generate_remote(prefill, decode, "r", prompt(30), 30, GREEDY, sink)
    assert sink.finished() == local(both, prompt(30))
    assert both.layout.itemsize_bytes == 2


@pytest.mark.parametrize("budget", [1, 6, 64, 1000])
def test_each_layer_of_each_block_is_reported_once_when_it_is_final(make: Make, budget: int) -> None:
    whole, cut = Keeper(), Keeper()
    for keeper, tokens in ((whole, 1000), (cut, budget)):
        sink = Collector()
        handle = make("prefill", max_batch_tokens=tokens).prefill("r", prompt(30), 30, GREEDY, sink, keeper)
        assert sink.wait() == EndEvent("prefilled")
        handle.release()
    assert sorted(cut.reported) == [(layer, block) for layer in range(2) for block in range(8)]
    assert cut.first == whole.first
    for at, part in cut.parts.items():
        a, b = (torch.frombuffer(bytearray(p), dtype=torch.float32) for p in (part, whole.parts[at]))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_block_sent_part_empty_holds_nothing_of_an_earlier_request(make: Make) -> None:
    engine = make("prefill", kv_cache_bytes=MAX_LEN_BLOCKS * BLOCK_BYTES)
    keeper = Keeper()
    for n in (250, 250, 5):
        keeper, sink = Keeper(), Collector()
        handle = engine.prefill("r", prompt(n), n, GREEDY, sink, keeper)
        sink.wait()
        handle.release()
    last = torch.frombuffer(bytearray(keeper.parts[0, 1]), dtype=torch.float32).view(2, 2, 4, 8)
    assert last[:, :, 0].abs().min() > 0
    assert not last[:, :, 1:].any()


def test_stale_nan_in_freed_blocks_harms_nobody(make: Make) -> None:
    engine = make()
    clean = local(engine, prompt(10))
    engine._memory.tensor.fill_(torch.nan)
    assert local(engine, prompt(10)) == clean


# ---- how a request ends ----


def test_a_stop_token_ends_the_request_and_is_the_last_one_sent(make: Make) -> None:
    engine = make()
    tokens = local(engine, prompt(9))
    stop = tokens[5]
    sink = Collector()
    engine.generate("r", prompt(9), 9, replace(GREEDY, stop_token_ids=(stop,)), sink)
    assert sink.wait() == EndEvent("stop")
    assert sink.tokens == tokens[: tokens.index(stop) + 1]


def test_a_request_ends_at_the_length_limit_of_the_model(make: Make) -> None:
    engine = make(max_model_len=20)
    sink = Collector()
    engine.generate("r", prompt(15), 15, replace(GREEDY, max_new_tokens=1000), sink)
    assert sink.wait() == EndEvent("length")
    assert len(sink.tokens) == 5


def test_a_first_token_that_ends_the_request_is_not_handed_over(make: Make) -> None:
    engine, keeper, sink = make("prefill"), Keeper(), Collector()
    handle = engine.prefill("r", prompt(9), 9, replace(GREEDY, max_new_tokens=1), sink, keeper)
    assert sink.wait() == EndEvent("length")
    assert (len(sink.tokens), keeper.first, keeper.aborted) == (1, None, ["finished"])
    handle.release()


def test_a_sequence_that_arrives_with_its_last_token_ends_without_another(make: Make) -> None:
    engine, sink = make("decode"), Collector()
    reservation = engine.reserve("r", 9, 10)
    engine.decode(reservation, [*prompt(9), 3], 9, replace(GREEDY, max_new_tokens=1), sink)
    assert (sink.wait(), sink.tokens) == (EndEvent("length"), [])


def test_a_prefill_without_a_sender_keeps_no_blocks(make: Make) -> None:
    engine, sink = make("prefill"), Collector()
    engine.prefill("r", prompt(9), 9, GREEDY, sink, None)
    assert sink.wait() == EndEvent("prefilled")
    assert engine.load().blocks_free == engine.load().blocks_total


# ---- what it refuses ----


@pytest.mark.parametrize(
    ("tokens", "prompt_tokens", "says"),
    [
        ([], 0, "at least one"),
        ([97], 1, "0 to 96"),
        ([-1], 1, "0 to 96"),
        ([1, 2], 3, "prompt_tokens: 3 of 2"),
        ([1, 2], 0, "prompt_tokens: 0 of 2"),
        (prompt(30), 10, "12 were emitted already"),
        (prompt(256), 256, "max_model_len 256"),
    ],
)
def test_a_request_that_can_never_succeed_is_refused_by_name(make: Make, tokens: list[int], prompt_tokens: int, says: str) -> None:
    engine = make()
    with pytest.raises(InvalidInput, match=says):
        engine.generate("r", tokens, prompt_tokens, GREEDY, Collector())
    with pytest.raises(InvalidInput, match=says):
        engine.prefill("r", tokens, prompt_tokens, GREEDY, Collector(), None)


def test_queue_and_batch_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    engine = make(max_running=2, max_waiting=3)
    sinks = [Collector() for _ in range(5)]
    engine.generate("r", prompt(5), 5, GREEDY, sinks[0])
    assert gate.reached.wait(30)
    engine.generate("r", prompt(5), 5, GREEDY, sinks[1])
    with pytest.raises(NoCapacity, match="max_running is 2"):
        engine.generate("r", prompt(5), 5, GREEDY, Collector())
    with pytest.raises(NoCapacity, match="max_running is 2"):
        engine.reserve("r", 5, 10)
    handles = [engine.prefill("r", prompt(5), 5, GREEDY, s, None) for s in sinks[2:4]]
    with pytest.raises(NoCapacity, match="max_waiting is 3"):
        engine.prefill("r", prompt(5), 5, GREEDY, Collector(), None)
    load = engine.load()
    assert (load.waiting_requests, load.waiting_tokens, load.running_requests) == (3, 15, 1)
    gate.open.set()
    assert [type(s.wait()) for s in sinks[:4]] == [EndEvent] * 4
    assert len(handles) == 2


def test_a_reservation_holds_blocks_until_it_is_released_or_taken(make: Make) -> None:
    engine = make("decode")
    held = engine.reserve("r", 9, 21)
    assert held.n_blocks == 3
    assert engine.load().blocks_leased == 6
    with pytest.raises(InvalidInput, match="for 9 and the first token"):
        engine.decode(held, prompt(9), 9, GREEDY, Collector())
    for layer, block in ((0, 3), (2, 0), (0, -1)):
        with pytest.raises(IndexError):
            held.layer_view(layer, block)
    held.release()
    held.release()
    assert engine.load().blocks_leased == 0
    with pytest.raises(InvalidInput, match="has ended"):
        engine.decode(held, prompt(10), 9, GREEDY, Collector())
    with pytest.raises(ValueError, match="has ended"):
        held.layer_view(0, 0)
    with pytest.raises(InvalidInput, match="this worker has 64"):
        make("decode", kv_cache_bytes=MAX_LEN_BLOCKS * BLOCK_BYTES, max_model_len=255).reserve("r", 300, 400)


def test_a_cache_too_small_for_one_request_is_refused_at_start(make: Make) -> None:
    with pytest.raises(ModelError, match="kv_cache_bytes"):
        make(kv_cache_bytes=(MAX_LEN_BLOCKS - 1) * BLOCK_BYTES)


# ---- cancel, stop and faults ----


def test_prompts_wait_for_blocks_and_the_long_one_is_not_overtaken(make: Make) -> None:
    engine = make("prefill", kv_cache_bytes=MAX_LEN_BLOCKS * BLOCK_BYTES, max_batch_tokens=600)
    first_sink, order = Collector(), []
    first = engine.prefill("a", prompt(200), 200, GREEDY, first_sink, Keeper())
    first_sink.wait()
    sinks: list[Collector] = []
    handles: list[api.PrefillHandle] = []
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
def test_an_exception_in_a_step_fails_its_requests_and_the_next_is_served(make: Make, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
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
    network = engine._steps.network
    forward = network.forward

    def poisoned(batch: Any, *rest: Any) -> torch.Tensor:
        logits = forward(batch, *rest)
        logits[batch.token_ids[batch.last] == prompt(5)[-1]] = torch.nan
        return logits

    monkeypatch.setattr(network, "forward", poisoned)
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

    def bad(event: api.Event) -> None:
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
    monkeypatch.setattr(TorchEngine, "_take_prefill", lambda *_: 1 / 0)
    gate.open.set()
    assert isinstance(sink.wait(), ErrorEvent)
    engine.stop(10)
    assert not engine.alive()


# ---- any order of events ----

acts = st.tuples(
    st.sampled_from(["generate", "remote", "prefill", "cancel", "release"]), st.integers(1, 120), st.integers(1, 10), st.integers(0, 9)
)


@settings(max_examples=15, deadline=None)
@given(st.lists(acts, min_size=1, max_size=25))
def test_whatever_happens_every_request_ends_once_and_every_block_comes_back(folder: Path, ops: list[tuple[str, int, int, int]]) -> None:
    config = EngineConfig("t", "both", block_size_tokens=4, kv_cache_bytes=80 * BLOCK_BYTES, max_batch_tokens=48, prefill_wait_s=0.0)
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
            handle.release()  # an unfinished prefill is cancelled by this
        sink.wait()
        assert sink.late == []
    prefill.stop(10)
    decode.stop(10)
    for engine in (prefill, decode):
        load = engine.load()
        assert (load.blocks_free, load.blocks_used, load.blocks_leased) == (load.blocks_total, 0, 0)
