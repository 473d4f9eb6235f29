"""Workers that are about to end serve while nobody else can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.router.workers.infos import worker

from disagg_router.workers.pair_choice import handshake_pairs
from disagg_router.workers.reserves import is_of_use, with_reserves
from disagg_router.workers.worker_info import Worker
from disagg_wire.protocol import FEATURE_NO_LOCAL_PREFILL


def ending(name: str, role: str, **more: Any) -> Worker:
    return worker(name, role, state="draining", last_resort=True, **more)


ENGINE = frozenset([FEATURE_NO_LOCAL_PREFILL])
P, D = worker("p", "prefill"), worker("d", "decode")


@pytest.mark.parametrize(
    ("workers", "leaving", "called"),
    [
        ([], [], set()),
        ([P, D], [], set()),
        # Others serve.
        ([P, D, ending("d2", "decode")], [], set()),
        ([P, D], [ending("d2", "decode"), worker("d3", "decode")], set()),
        # Decode alone serves too, if its engine can.
        ([ending("p2", "prefill"), D], [], set()),
        ([ending("p2", "prefill"), replace(D, features=ENGINE)], [], {"p2"}),
        # Nobody else is there.
        ([ending("p2", "prefill"), ending("d2", "decode")], [], {"p2", "d2"}),
        ([P, ending("d2", "decode")], [], {"d2"}),
        ([P], [ending("d2", "decode")], {"d2"}),
        # A worker whose Service is gone may not know yet that it is to end.
        ([], [P, D], {"p", "d"}),
        # Others have other weights.
        ([P, D, ending("d2", "decode", digest="E")], [], {"d2"}),
        # It is on notice, or changes its role: others are to serve.
        ([P, worker("d2", "decode", state="draining")], [worker("d3", "decode", state="draining")], set()),
        ([P], [worker("d3", "decode", state="starting")], set()),
    ],
)
def test_who_is_called(workers: list[Worker], leaving: list[Worker], called: set[str]) -> None:
    found = with_reserves(workers, leaving)
    assert {w.name for w in found if w.last_resort and w.state == "ready"} == called
    assert {w.name for w in workers} <= {w.name for w in found}
    assert {w.name for w in found} - {w.name for w in workers} <= called
    assert len(found) == len({w.name for w in found})


def test_a_worker_that_is_called_is_not_tried_for_its_own_sake() -> None:
    assert handshake_pairs(with_reserves([ending("p2", "prefill"), ending("d2", "decode")], [])) == []


def test_who_takes_requests_although_it_leaves() -> None:
    assert is_of_use(D)
    assert is_of_use(ending("d2", "decode"))
    assert not is_of_use(worker("d2", "decode", state="draining"))
    assert not is_of_use(worker("d2", "decode", state="starting"))
