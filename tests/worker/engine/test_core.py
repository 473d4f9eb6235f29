"""Tests of the engine with real weights and a real cache: the tokens that it generates, the blocks
that it holds, and the requests that it refuses.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.worker.collector import Collector
from tests.worker.engine.engines import BLOCK_BYTES, GREEDY, MAX_LEN_BLOCKS, RANDOM, Gate, Keeper, Make, local, prompt
from tests.worker.in_process_kv import generate_remote

from disagg_protocol.errors import InvalidInput, ModelError, NoCapacity
from disagg_protocol.events import EndEvent
from disagg_protocol.sampling_params import SamplingParams

# ---- Tokens ----


@pytest.mark.parametrize(
    "sampling", [GREEDY, RANDOM, replace(RANDOM, logprobs=2)], ids=["greedy", "random", "logprobs"]
)
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


def test_weights_quantised_at_load_serve_and_are_told_apart(make: Make) -> None:
    engines = {q: make(quantization=q) for q in ("none", "int8", "int4")}
    assert {q: e.model.digest.partition("+")[2] for q, e in engines.items()} == {
        "none": "",
        "int8": "int8",
        "int4": "int4",
    }
    assert all(len(local(e, prompt(30))) == 12 for e in engines.values())


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
    engine = make(prefix_cache=False)
    clean = local(engine, prompt(10))
    engine._memory.tensor.fill_(torch.nan)
    assert local(engine, prompt(10)) == clean


# ---- The ends of requests ----


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


# ---- Refusals ----


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
def test_a_request_that_can_never_succeed_is_refused_by_name(
    make: Make, tokens: list[int], prompt_tokens: int, says: str
) -> None:
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
            held.blocks(block, 1).writing(layer)
    held.release()
    held.release()
    assert engine.load().blocks_leased == 0
    with pytest.raises(InvalidInput, match="has ended"):
        engine.decode(held, prompt(10), 9, GREEDY, Collector())
    with pytest.raises(ValueError, match="has ended"):
        held.blocks(0, 1)


def test_a_cache_too_small_for_one_request_is_refused_at_start(make: Make) -> None:
    with pytest.raises(ModelError, match="kv_cache_bytes"):
        make(kv_cache_bytes=(MAX_LEN_BLOCKS - 1) * BLOCK_BYTES)
