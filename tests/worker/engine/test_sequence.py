"""A request in the engine knows how far it is, when it is over and when its blocks are free."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from disagg_protocol.events import Event
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.block_pool import Holding, State
from disagg_worker.engine.sequence import Sequence

MAX_LEN = 10


def _no_sink(event: Event) -> None: ...


class Sender:
    """A transfer that does nothing."""

    held_blocks = 0
    reads_region = False

    def layer_ready(self, layer: int, first_block: int, blocks: Any) -> None: ...
    def commit(self, first_token: Any) -> None: ...
    def abort(self, error: Any) -> None: ...


@dataclass
class Mask:
    """A mask that is there or not, and a grammar whose masks come soon or not."""

    ready: bool
    quick: bool

    def ask(self, emitted: Many[int]) -> None: ...

    def wait(self, timeout_s: float) -> bool:
        return self.ready

    def allowed(self, emitted: Many[int]) -> npt.NDArray[np.bool_]:
        return np.ones(1, dtype=np.bool_)


def sequence(tokens: list[int], prompt_tokens: int = 3, due_s: float | None = None, **sampling: Any) -> Sequence:
    params = SamplingParams(**{"seed": 0, "max_new_tokens": 4, "stop_token_ids": (0,), **sampling})
    return Sequence(1, "r", tokens, prompt_tokens, params, _no_sink, False, 0.0, "", due_s)


@pytest.mark.parametrize(
    ("tokens", "sampling", "reason"),
    [
        ([1, 2, 3], {}, None),
        ([1, 2, 0], {}, None),
        ([1, 2, 3, 4], {}, None),
        ([1, 2, 3, 0], {}, "stop"),
        ([1, 2, 3, 0], {"min_tokens": 1}, None),
        ([1, 2, 3, 4, 0], {"min_tokens": 1}, "stop"),
        ([1, 2, 3, 4, 5, 6, 7], {}, "length"),
        ([1, 2, 3, 4, 5, 6, 0], {}, "stop"),
        ([1, 2, 3, 4], {"max_new_tokens": 1}, "length"),
        ([1] * MAX_LEN, {"max_new_tokens": 100}, "length"),
        ([1] * (MAX_LEN - 1), {"max_new_tokens": 100}, None),
    ],
)
def test_a_request_is_over_at_an_end_token_or_at_its_longest(
    tokens: list[int], sampling: dict[str, Any], reason: str | None
) -> None:
    assert sequence(tokens, **sampling).finish_reason(MAX_LEN) == reason


def test_a_request_gets_no_longer_than_asked_for_and_than_the_model_allows() -> None:
    assert sequence([1, 2, 3]).most_tokens(MAX_LEN) == 7
    assert sequence([1, 2, 3], max_new_tokens=100).most_tokens(MAX_LEN) == MAX_LEN


def test_what_is_due_is_the_first_token_alone() -> None:
    waiting = sequence([1, 2, 3], due_s=5.0)
    assert (waiting.emitted, waiting.waited_due_s) == (0, 5.0)
    waiting.tokens.append(4)
    assert (waiting.emitted, waiting.waited_due_s) == (1, None)


@pytest.mark.parametrize(
    ("ended", "asked", "sends", "releasable"),
    [
        (False, False, False, False),
        (False, True, True, False),
        (True, False, False, True),
        (True, False, True, False),
        (True, True, True, True),
    ],
)
def test_blocks_are_free_when_the_request_is_over_and_no_sender_reads_them(
    ended: bool, asked: bool, sends: bool, releasable: bool
) -> None:
    s = sequence([1, 2, 3])
    s.ended, s.release_asked, s.sender = ended, asked, Sender() if sends else None
    assert s.releasable == releasable


def test_blocks_are_those_that_it_holds() -> None:
    s = sequence([1, 2, 3])
    assert s.blocks == []
    s.holding = Holding(State.USED, [4, 2], [0, 0])
    assert s.blocks == [4, 2]


def test_a_prompt_waits_for_its_mask_and_a_step_only_for_one_that_takes_long() -> None:
    found = {}
    for ready in (False, True):
        for quick in (False, True):
            s = sequence([1, 2, 3])
            s.grammar = Mask(ready, quick)
            found[ready, quick] = s.masked, s.may_step
    assert found == {
        (False, False): (False, False),
        (False, True): (False, True),
        (True, False): (True, True),
        (True, True): (True, True),
    }
    assert (sequence([1]).masked, sequence([1]).may_step) == (True, True)
