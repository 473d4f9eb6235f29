"""Tests of preemption: requests that ask for more than they use share the cache; when it runs out,
the newest one waits, and no tokens change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.worker.collector import Collector
from tests.worker.engine.engines import BLOCK_BYTES, GREEDY, MAX_LEN_BLOCKS, RANDOM, Keeper, Make, local, prompt
from tests.worker.in_process_kv import generate_remote

from disagg_protocol.errors import NoCapacity
from disagg_protocol.events import EndEvent, ErrorEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.backend.interface import Batch
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.engine.core import TorchEngine

SMALL = {"kv_cache_bytes": MAX_LEN_BLOCKS * BLOCK_BYTES, "growth_reserve_tokens": 4}
LONG = [replace(GREEDY, max_new_tokens=70), replace(RANDOM, max_new_tokens=70, temperature=1.0)]


@pytest.mark.parametrize("sampling", LONG, ids=["temperature 0", "temperature 1"])
@pytest.mark.parametrize(
    "extra", [{}, {"prefix_cache": False}, {"host_cache_bytes": 40 * BLOCK_BYTES}], ids=["cache", "no cache", "host"]
)
def test_preempted_sequences_continue_with_the_same_tokens(
    make: Make, sampling: SamplingParams, extra: dict[str, Any]
) -> None:
    engine = make(**SMALL, **extra)
    expected = [local(make(), prompt(20 + i, i), sampling) for i in range(6)]
    sinks = [Collector() for _ in expected]
    for i, sink in enumerate(sinks):
        engine.generate("r", prompt(20 + i, i), 20 + i, sampling, sink)
    assert [s.finished() for s in sinks] == expected
    assert all([e.index for e in s.events] == list(range(70)) for s in sinks)
    assert engine.load().preemptions_total > 0


@pytest.mark.parametrize("sampling", LONG, ids=["temperature 0", "temperature 1"])
def test_sequences_whose_kv_came_by_transfer_can_be_preempted(make: Make, sampling: SamplingParams) -> None:
    prefill, decode = make("prefill"), make("decode", **SMALL)
    expected = [local(make(), prompt(20 + i, i), sampling) for i in range(5)]
    sinks = [Collector() for _ in expected]
    for i, sink in enumerate(sinks):
        generate_remote(prefill, decode, "r", prompt(20 + i, i), 20 + i, sampling, sink)
    assert [s.finished() for s in sinks] == expected
    assert decode.load().preemptions_total > 0


def test_a_short_growth_reserve_admits_more_than_whole_requests_would(make: Make) -> None:
    asked = replace(GREEDY, max_new_tokens=200)
    for growth, admitted in ((200, 1), (4, 10)):
        engine = make("decode", **(SMALL | {"growth_reserve_tokens": growth}))
        held = []
        for _ in range(admitted):
            held.append(engine.reserve("r", 20, 20 + asked.max_new_tokens))
        with pytest.raises(NoCapacity, match="are free"):
            engine.reserve("r", 20, 20 + asked.max_new_tokens)
        for reservation in held:
            reservation.release()


# ---- Out of memory, and other faults of one batch ----


class SmallMemory(PlainBackend):
    """A backend that runs out of memory for more than `rows` rows at once, in the last layer of the
    network, after the other layers have been computed and reported.
    """

    def __init__(self, rows: int, error: Exception) -> None:
        super().__init__(torch.device("cpu"))
        self.rows, self.error = rows, error

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: Batch,
        cache: torch.Tensor,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        if layer == 1 and q.shape[0] > self.rows:
            raise self.error
        return super().attend(q, k, v, batch, cache, layer, window)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
]


def _engine(make: Make, rows: int, error: Exception, **changes: Any) -> TorchEngine:
    return make(backend=SmallMemory(rows, error), **changes)


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
def test_out_of_memory_in_decode_costs_the_newest_request_only(make: Make, error: Exception) -> None:
    engine = _engine(make, 3, error, max_batch_tokens=3)
    sinks = [Collector() for _ in range(5)]
    expected = [local(make(), prompt(1, i), replace(GREEDY, max_new_tokens=30)) for i in range(5)]
    for i, sink in enumerate(sinks):
        engine.generate("r", prompt(1, i), 1, replace(GREEDY, max_new_tokens=30), sink)
    ends = [s.wait() for s in sinks]
    assert ends[:3] == [EndEvent("length")] * 3
    assert [s.tokens for s in sinks[:3]] == expected[:3]
    for end in ends[3:]:
        assert isinstance(end, ErrorEvent)
        assert (end.retryable, "out of memory" in end.message) == (True, True)
    assert local(engine, prompt(1)) == expected[0][:12]


def test_out_of_memory_in_prefill_reports_no_layer_twice(make: Make) -> None:
    engine = _engine(make, 20, ERRORS[0], role="prefill", max_batch_tokens=32, prefill_wait_s=30.0)
    keepers, sinks = [Keeper(), Keeper()], [Collector(), Collector()]
    handles = [engine.prefill("r", prompt(15, i), 15, GREEDY, sinks[i], keepers[i]) for i in range(2)]
    assert sinks[0].wait() == EndEvent("prefilled")
    assert isinstance(sinks[1].wait(), ErrorEvent)
    assert sorted(keepers[0].reported) == [(layer, block) for layer in range(2) for block in range(4)]
    assert keepers[1].aborted == ["internal"]
    for handle in handles:
        handle.release()


def test_a_request_too_large_for_memory_alone_is_refused_and_the_next_is_served(make: Make) -> None:
    engine = _engine(make, 20, ERRORS[0], max_batch_tokens=1000)
    sink = Collector()
    engine.generate("r", prompt(100), 100, GREEDY, sink)
    end = sink.wait()
    assert isinstance(end, ErrorEvent)
    assert "out of memory" in end.message
    assert len(local(engine, prompt(10))) == 12


def test_the_time_of_steps_is_split_into_network_and_rest(make: Make) -> None:
    engine = make()
    local(engine, prompt(30))
    seconds = engine.load().step_seconds_total
    assert seconds.keys() == {"forward", "rest"}
    assert seconds["forward"] > 0
    assert seconds["rest"] > 0
