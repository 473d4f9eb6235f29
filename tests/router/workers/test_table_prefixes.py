"""Tests of what a router believes the prefix caches of its workers to have."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest
from tests.router.workers.infos import worker

from disagg_router.membership.file import FileMembership
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.pair_choice import Choice
from disagg_router.workers.table import WorkerTable
from disagg_router.workers.worker_info import Identity

MODEL = Identity("m", "D")
FIRST, TURN, LONG = (list(range(n)) for n in (640, 704, 2000))


@pytest.fixture
def table() -> WorkerTable:
    made = WorkerTable(WorkerClient("key"), FileMembership(Path("none")), 1.0)
    for w in (worker("p", "prefill"), worker("d", "decode")):
        made._workers[w.name] = w
    return made


def _choose(table: WorkerTable, tokens: list[int]) -> Choice:
    choice = table.choose(identity=MODEL, single_token=False, full=set(), tokens=tokens, tenant="")
    assert choice is not None
    return choice


@pytest.mark.parametrize(("local", "missing"), [(False, 2000 - 704), (True, 2000 - 640)])
def test_what_decode_has_prefilled_itself_is_not_expected_of_prefill(
    table: WorkerTable, local: bool, missing: int
) -> None:
    table.decoded(FIRST, "", MODEL, _choose(table, FIRST))
    turn = _choose(table, TURN)
    assert turn.computed_tokens == 64
    if local:
        table.not_prefilled(TURN, "", MODEL, turn)
        turn = Choice(None, turn.decode)
    table.decoded(TURN, "", MODEL, turn)
    assert table.uncached_tokens(LONG, "", MODEL) == missing
    assert _choose(table, LONG).computed_tokens == missing


def test_a_prompt_that_prefill_had_already_stays_there(table: WorkerTable) -> None:
    _choose(table, FIRST)
    again = _choose(table, FIRST)
    assert again.computed_tokens == 1
    table.not_prefilled(FIRST, "", MODEL, again)
    assert _choose(table, FIRST).computed_tokens == 1


def test_where_decode_is_alone_its_own_prompts_count(table: WorkerTable) -> None:
    del table._workers["p"]
    alone = _choose(table, FIRST)
    assert alone.prefill is None
    table.not_prefilled(FIRST, "", MODEL, alone)
    assert table.uncached_tokens(TURN, "", MODEL) == 64


def test_a_start_that_all_prompts_have_fills_no_worker_by_more_than_a_quarter_above_the_others() -> None:
    made = WorkerTable(WorkerClient("key"), FileMembership(Path("none")), 1.0)
    everyone = [worker("p", "prefill"), *(worker(f"d{i}", "decode", max_running=40) for i in range(6))]
    made._workers.update({w.name: w for w in everyone})
    running = Counter({w.incarnation: 0 for w in everyone if w.role == "decode"})
    with contextlib.ExitStack() as requests:
        for i in range(200):
            decode = _choose(made, [*FIRST, *[i] * 64]).decode
            assert decode is not None
            running[decode.incarnation] += 1
            assert max(running.values()) - min(running.values()) <= 40 / 4 + 1
            requests.enter_context(made.busy(decode, requests=1))
    assert min(running.values()) >= 25
