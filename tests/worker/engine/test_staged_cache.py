"""Tests of engines whose cache is reached through buffers, as that of a GPU is: the tokens are the
same, the buffers do not grow with what is moved, and nobody waits for KV that is on its way.
"""

from __future__ import annotations

import pytest
from tests.worker.collector import Collector
from tests.worker.engine.engines import GREEDY, RANDOM, Make, local, prompt
from tests.worker.in_process_kv import generate_remote

from disagg_worker.engine import setup
from disagg_worker.execution.staging import Staging


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[Staging]:
    """Let the CPU be reached like a device, and return the two buffers of each engine."""
    made: list[Staging] = []

    def staging(*_: object) -> Staging:
        made.append(Staging(2, 5.0, pinned=False))
        return made[-1]

    monkeypatch.setattr(setup, "_staging", staging)
    return made


def test_kv_that_went_through_buffers_gives_the_same_tokens(make: Make, buffers: list[Staging]) -> None:
    prefill, decode = make("prefill", max_batch_tokens=24), make("decode")
    sinks = [Collector() for _ in range(6)]
    for i, sink in enumerate(sinks):
        generate_remote(prefill, decode, f"r{i}", prompt(30 + 9 * i, i), 30 + 9 * i, RANDOM, sink)
    found = [sink.finished() for sink in sinks]
    assert len(buffers) == 2
    one_layer_of_a_prompt = -(-75 // 4) * decode.layout.layer_block_bytes
    assert all(0 < staging.held_bytes <= 2 * one_layer_of_a_prompt for staging in buffers)
    assert found == [local(make(), prompt(30 + 9 * i, i), RANDOM) for i in range(6)]


def test_streams_go_on_while_kv_arrives(make: Make, buffers: list[Staging]) -> None:
    """The frame that is being received takes as long as the others take to be answered."""
    decode = make("decode")
    wanted = local(decode, prompt(20))
    reservation = decode.reserve("r", 200, 220)
    with reservation.blocks(0, 50).writing(0) as views:
        assert sum(map(len, views)) == 50 * decode.layout.layer_block_bytes
        sink = Collector()
        decode.generate("other", prompt(20), 20, GREEDY, sink)
        assert sink.finished() == wanted
    reservation.release()
    assert decode.load().blocks_leased == 0
    assert buffers[0].held_bytes == 50 * decode.layout.layer_block_bytes
