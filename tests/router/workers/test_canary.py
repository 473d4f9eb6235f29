"""Which workers get a request while a new revision is tried."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from tests.router.workers.infos import worker

from disagg_router.workers.canary import Canary, canary_of, chosen, team_shares
from disagg_router.workers.catalogue import catalogue_of
from disagg_router.workers.pair_choice import Choice, Inflight, choose
from disagg_router.workers.worker_info import Identity, Member, Worker
from disagg_wire.canary import CanaryWord

IDLE = Inflight({}, {})
WORD = CanaryWord(10, "new", ("left",))
CANARY = Canary({"prefill": WORD, "decode": WORD})


def pairs(revision: str, count: int, **changes: Any) -> list[Worker]:
    """Return workers of `count` pairs, whose KV fits no other revision."""
    options = {"revision": revision, "compat": revision} | changes
    return [worker(f"{role}-{revision}-{i}", role, **options) for role in ("prefill", "decode") for i in range(count)]


def ask(
    workers: Sequence[Worker],
    roll: float,
    canary: Canary = CANARY,
    full: Collection[str] = (),
    avoided: Collection[str] = (),
    **changes: Any,
) -> Choice | None:
    def choice_of(some: Sequence[Worker], full: Collection[str]) -> Choice | None:
        options: dict[str, Any] = {"identity": Identity("m", "D"), "single_token": False} | changes
        return choose(some, **options, avoid=lambda key: key in avoided, full=full, proven=(), inflight=IDLE,
                      dice=random.random)  # fmt: skip

    return chosen(canary, workers, roll, full, choice_of)


def names(choice: Choice | None) -> tuple[str, str] | None:
    if choice is None:
        return None
    return tuple("-" if w is None else w.revision for w in (choice.prefill, choice.decode))  # type: ignore[return-value]


BOTH = [*pairs("old", 4), *pairs("new", 1)]
OF_NEW = {"prefill-new-0/1", "decode-new-0/1"}
OF_OLD = {f"{role}-old-{i}/1" for role in ("prefill", "decode") for i in range(4)}
TABLE: list[tuple[str, list[Worker], float, dict[str, Any], tuple[str, str] | None]] = [
    ("its part", BOTH, 0.099, {}, ("new", "new")),
    ("the rest", BOTH, 0.1, {}, ("old", "old")),
    ("no new worker", pairs("old", 1), 0.0, {}, ("old", "old")),
    ("no old worker", pairs("new", 1), 0.9, {}, ("new", "new")),
    ("new prefill is gone", [*pairs("old", 1), *pairs("new", 1)[1:]], 0.0, {}, ("old", "old")),
    ("the new one fails", BOTH, 0.0, {"avoided": OF_NEW}, ("old", "old")),
    ("the old ones fail", BOTH, 0.9, {"avoided": OF_OLD}, ("new", "new")),
    ("the new one is full", BOTH, 0.0, {"full": OF_NEW}, ("old", "old")),
    ("the old ones are full: it waits for them", BOTH, 0.9, {"full": OF_OLD}, None),
    ("old prefill is full: it waits for that", BOTH, 0.9, {"full": {f"prefill-old-{i}/1" for i in range(4)}},
      ("-", "old")),
    ("all are full", BOTH, 0.0, {"full": OF_OLD | OF_NEW}, None),
    ("one token", BOTH, 0.0, {"single_token": True}, ("new", "-")),
    ("what was given up gets nothing", [*pairs("left", 3), *pairs("old", 1)], 0.0, {}, ("old", "old")),
    ("what was given up serves if nothing else does", pairs("left", 1), 0.0, {}, ("left", "left")),
    ("nobody", [], 0.0, {}, None),
    ("a decode worker alone", pairs("old", 1)[1:], 0.0, {}, ("-", "old")),
    ("mixed workers are better than none", [pairs("old", 1, compat="c")[0], pairs("new", 1, compat="c")[1]], 0.0, {},
      ("old", "new")),
]  # fmt: skip


@pytest.mark.parametrize(("workers", "roll", "changes", "expected"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_who_gets_a_request(
    workers: list[Worker], roll: float, changes: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    assert names(ask(workers, roll, **changes)) == expected


def test_where_the_kv_fits_no_pair_is_mixed() -> None:
    rng, found = random.Random(1), Counter[Any]()
    alike = [*pairs("old", 4, compat="c"), *pairs("new", 1, compat="c")]
    for _ in range(2000):
        found[names(ask(alike, rng.random()))] += 1
    assert set(found) == {("old", "old"), ("new", "new")}
    assert found["new", "new"] == pytest.approx(200, abs=50)


@pytest.mark.parametrize("canary", [CANARY, Canary({"decode": WORD})])
def test_workers_that_do_both_get_their_part_as_well(canary: Canary) -> None:
    rng, found = random.Random(1), Counter[Any]()
    counts = {"old": 3, "new": 2, "left": 1}
    whole = [worker(f"{name}-{i}", "both", revision=name) for name, count in counts.items() for i in range(count)]
    for _ in range(2000):
        found[names(ask(whole, rng.random(), canary))] += 1
    assert set(found) == {("-", "old"), ("-", "new")}
    assert found["-", "new"] == pytest.approx(200, abs=50)
    olds = {w.incarnation for w in whole if w.revision == "old"}
    assert ask(whole, 0.9, canary, full=olds) is None


def test_a_pool_that_does_not_change_serves_both() -> None:
    canary = Canary({"prefill": WORD})
    shared = worker("d", "decode", revision="kept", compat="c")
    prefills = [worker(r, "prefill", revision=r, compat="c") for r in ("old", "new")]
    assert names(ask([*prefills, shared], 0.05, canary)) == ("new", "kept")
    assert names(ask([*prefills, shared], 0.5, canary)) == ("old", "kept")
    assert canary.side(prefills[1], shared) is True
    assert canary.side(prefills[0], shared) is False


def test_the_side_of_a_request() -> None:
    new, old, left = (pairs(r, 1)[1] for r in ("new", "old", "left"))
    assert CANARY.side(None, None) is None
    assert CANARY.side(left, old) is None
    assert CANARY.side(old, new) is True
    assert CANARY.side(None, old) is False


def test_the_pools_say_what_is_tried_and_the_smaller_part_counts() -> None:
    def member(name: str, pool: str, text: str) -> Member:
        return Member(name, f"http://{name}", frozenset({pool}), canary=text)

    found = canary_of([member("a", "prefill", "10.rp"), member("b", "decode", "30.rd"), member("c", "prefill", "5.rp"),
                       member("d", "prefill", "40.rp"), member("e", "decode", "garbage")])  # fmt: skip
    assert found is not None
    assert (found.percent, found.name) == (5, "d-p")
    assert canary_of([member("a", "prefill", "")]) is None
    assert Canary({"prefill": CanaryWord(0, left=("x",))}).percent == 0


def test_requests_for_one_name_are_shared_out_between_weights() -> None:
    def shares(workers: list[Worker]) -> dict[str, float]:
        made = catalogue_of(workers, (), ("a", "b", "c"), CANARY)
        return {o.model.identity.digest: round(o.share, 3) for o in made.current("m")}

    old, new, left = pairs("old", 4, digest="a"), pairs("new", 1, digest="b"), pairs("left", 2, digest="c")
    assert shares([*old, *new, *left]) == {"a": 0.9, "b": 0.1, "c": 0.0}
    assert shares([*old, *left]) == {"a": 1.0, "c": 0.0}
    assert shares(new) == {"b": 1.0}
    assert shares([*pairs("old", 1, digest="a"), *pairs("older", 3, digest="c"), *new]) == {
        "a": 0.225, "b": 0.1, "c": 0.675,
    }  # fmt: skip
    assert team_shares(CANARY, []) == []
