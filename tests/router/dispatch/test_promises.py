"""Tests of which promises a request loses when it goes on with another worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.router.workers.infos import worker

from disagg_router.dispatch.promises import cannot_go_on, weakened
from disagg_router.dispatch.request_state import RequestState
from disagg_router.workers.pair_choice import Choice
from disagg_router.workers.worker_info import Identity

SEED, FORMAT = frozenset({"seed_lost_by_failover"}), frozenset({"structured_not_resumed"})
P, D = worker("p", "prefill"), worker("d", "decode")
HOT = {"temperature": 0.7, "presence_penalty": 0.0, "frequency_penalty": 0.0}


def make(emitted: int, *, own_seed: bool = True, **sampling: Any) -> RequestState:
    values = {"max_new_tokens": 9, "stop_token_ids": []} | HOT | sampling
    return RequestState("r", Identity("m", "D"), (1, 2), values, 3, has_own_seed=own_seed, emitted=[5] * emitted)


@pytest.mark.parametrize(
    ("state", "features", "wanted"),
    [
        (make(1), SEED, {"seed"}),
        (make(0), SEED, set()),
        (make(1), frozenset(), set()),
        (make(1, own_seed=False), SEED, set()),
        (make(1, temperature=0.0), SEED, set()),
        (make(1, presence_penalty=0.5), FORMAT, {"penalty"}),
        (make(1, frequency_penalty=-0.5), FORMAT, {"penalty"}),
        (make(0, frequency_penalty=-0.5), FORMAT, set()),
        (make(1, frequency_penalty=-0.5), SEED, {"seed"}),
        (make(1), FORMAT, set()),
        (make(1, presence_penalty=0.5), SEED | FORMAT, {"seed", "penalty"}),
    ],
)
def test_a_promise_is_weaker_where_it_was_given_and_the_worker_cannot_keep_it(
    state: RequestState, features: frozenset[str], wanted: set[str]
) -> None:
    weak = replace(D, features=features)
    assert weakened(state, Choice(P, weak)) == wanted
    assert weakened(state, Choice(None, weak)) == wanted
    assert weakened(state, Choice(replace(P, features=features), None)) == wanted
    assert weakened(state, Choice(replace(P, features=features), D)) == set()
    assert weakened(state, Choice(None, None)) == set()


@pytest.mark.parametrize(
    ("emitted", "structured", "workers", "last", "wanted"),
    [
        (1, True, [replace(D, features=FORMAT)], None, True),
        (0, True, [replace(D, features=FORMAT)], None, False),
        (1, False, [replace(D, features=FORMAT)], None, False),
        (1, True, [replace(D, features=FORMAT), worker("e", "decode", state="starting")], None, False),
        (1, True, [replace(D, features=FORMAT), worker("e", "decode", digest="E")], None, True),
        (1, True, [], replace(D, features=FORMAT), True),
        (1, True, [], D, False),
        (1, True, [], None, False),
    ],
)
def test_a_format_that_has_begun_cannot_go_on_where_no_worker_resumes_it(
    emitted: int, structured: bool, workers: list[Any], last: Any, wanted: bool
) -> None:
    state = make(emitted, structured={"kind": "regex", "value": "a+"} if structured else None)
    assert cannot_go_on(state, workers, last) is wanted
