"""Tests of the choice of the pair, and of how long a failed worker is avoided."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.workers.infos import worker

from disagg_router.workers.pair_choice import (
    Breaker,
    Choice,
    Inflight,
    Prompt,
    choose,
    decode_room,
    handshake_pairs,
    pair_key,
    scarce_pool,
)
from disagg_router.workers.worker_info import Identity, Worker
from disagg_wire.room import Room

IDLE = Inflight({}, {})


def pick(workers: list[Worker], **changes: Any) -> Choice | None:
    options: dict[str, Any] = {
        "identity": Identity("m", "D"),
        "single_token": False,
        "avoid": lambda key: False,
        "full": (),
        "proven": (),
        "inflight": IDLE,
        "dice": lambda: 0.5,
    }
    return choose(workers, **options | changes)


def names(choice: Choice | None) -> tuple[str | None, str | None] | None:
    return (
        None
        if choice is None
        else (choice.prefill.name if choice.prefill else None, choice.decode.name if choice.decode else None)
    )


P, D, BOTH = worker("p", "prefill"), worker("d", "decode"), worker("b", "both")
LATE = frozenset({"first_token_from_decode"})
NO_LOCAL = frozenset({"no_local_prefill"})
NO_FORMAT = frozenset({"structured_not_resumed"})
SQL = frozenset({"sql"})
ASKED_SQL = Identity("sql", "D", "sql")
TABLE: list[tuple[str, list[Worker], dict[str, Any], tuple[str | None, str | None] | None]] = [
    ("nobody is there", [], {}, None),
    ("a pair", [P, D], {}, ("p", "d")),
    ("only a prefill worker", [P], {}, None),
    ("only a decode worker: it prefills itself", [D], {}, (None, "d")),
    ("one worker of both roles needs no transfer", [BOTH], {}, (None, "b")),
    ("one token needs no decode worker", [P, D], {"single_token": True}, ("p", None)),
    ("one token without a prefill worker", [D], {"single_token": True}, (None, "d")),
    ("decode drains", [P, replace(D, state="draining")], {}, None),
    ("prefill drains", [replace(P, state="draining"), D], {}, (None, "d")),
    ("decode starts", [P, replace(D, state="starting")], {}, None),
    ("decode is listed by the other pool: it moves", [P, D, worker("e", "decode", pools=frozenset({"prefill"}))],
      {"inflight": Inflight({"d/1": 5}, {})}, ("p", "d")),
    ("both pools list it while it moves", [P, worker("e", "decode", pools=frozenset({"prefill", "decode"}))], {},
      ("p", "e")),
    ("role both is at home in any pool", [worker("b", "both", pools=frozenset({"decode"}))], {}, (None, "b")),
    ("layouts differ", [replace(P, compat="other"), D], {}, (None, "d")),
    ("the model is another one", [replace(P, digest="E"), replace(D, digest="E")], {}, None),
    ("decode is full", [P, D], {"full": {"d/1"}}, None),
    ("prefill is full", [P, D], {"full": {"p/1"}}, (None, "d")),
    ("the pair is avoided", [P, D], {"avoid": lambda key: key == "p/1|d/1"}, (None, "d")),
    ("the prefill worker is avoided", [P, D], {"avoid": lambda key: key == "p/1"}, (None, "d")),
    ("the decode worker is avoided", [P, D], {"avoid": lambda key: key == "d/1"}, None),
    ("less waits for prefill", [replace(P, waiting_tokens=9), worker("q", "prefill", waiting_tokens=8), D], {},
      ("q", "d")),
    ("fewer run on decode", [P, replace(D, running_requests=2), worker("e", "decode", running_requests=1)], {},
      ("p", "e")),
    ("a bigger decode worker takes more", [P, replace(D, running_requests=2, max_running=20),
      worker("e", "decode", running_requests=2)], {}, ("p", "d")),
    ("decode with more free KV", [P, replace(D, blocks_free=10), worker("e", "decode", blocks_free=20)], {},
      ("p", "e")),
    ("decode that lacks KV for the prompt goes last", [P, replace(D, room=Room(5, 100, 9, 10, 0.0)),
      worker("e", "decode", running_requests=8, room=Room(50, 100, 2, 10, 0.0))], {"prompt": Prompt(20)}, ("p", "e")),
    ("but where all lack it one is asked", [P, replace(D, room=Room(5, 100, 9, 10, 0.0))], {"prompt": Prompt(20)},
      ("p", "d")),
    ("a cached prefix is worth its tokens", [replace(P, waiting_tokens=40), worker("q", "prefill"), D],
      {"prompt": Prompt(100, {"p/1": 64})}, ("p", "d")),
    ("but not more", [replace(P, waiting_tokens=70), worker("q", "prefill"), D], {"prompt": Prompt(100, {"p/1": 64})},
      ("q", "d")),
    ("of equals the one with the prefix", [replace(P, waiting_tokens=64), worker("q", "prefill"), D],
      {"prompt": Prompt(100, {"p/1": 64})}, ("p", "d")),
    ("decode that holds the prompt may have a quarter of its seats more taken",
      [P, replace(D, running_requests=2), worker("e", "decode")], {"prompt": Prompt(100, {}, {"d/1": 100})},
      ("p", "d")),
    ("but not a third", [P, replace(D, running_requests=3), worker("e", "decode")],
      {"prompt": Prompt(100, {}, {"d/1": 100})}, ("p", "e")),
    ("half of the prompt is worth half of that", [P, replace(D, running_requests=2), worker("e", "decode")],
      {"prompt": Prompt(100, {}, {"d/1": 50})}, ("p", "e")),
    ("decode that lacks KV goes last whatever it holds", [P, replace(D, room=Room(5, 100, 9, 10, 0.0)),
      worker("e", "decode", running_requests=8)], {"prompt": Prompt(20, {}, {"d/1": 20})}, ("p", "e")),
    ("workers that do both are compared as such",
      [replace(BOTH, waiting_tokens=500), worker("c", "both", running_requests=3)],
      {"prompt": Prompt(100)}, (None, "c")),
    ("and the prefix counts there too", [replace(BOTH, running_requests=1), worker("c", "both")],
      {"prompt": Prompt(100, {"b/1": 64})}, (None, "b")),
    ("what this router sent counts before the next poll", [P, D, worker("e", "decode")],
      {"inflight": Inflight({"d/1": 1}, {})},
      ("p", "e")),
    ("tokens that this router sent count", [P, worker("q", "prefill"), D], {"inflight": Inflight({}, {"p/1": 5})},
      ("q", "d")),
    ("a proven pair goes before an idle one", [replace(P, waiting_tokens=9), worker("q", "prefill"), D],
     {"proven": {"p/1", "d/1"}}, ("p", "d")),
    ("no proven pair is left", [P, D], {"proven": {"p/1"}}, ("p", "d")),
    ("prefill that sends no token cannot answer alone", [replace(P, features=LATE), replace(D, features=LATE)],
      {"single_token": True}, ("p", "d")),
    ("but another can", [replace(P, features=LATE), worker("q", "prefill", waiting_tokens=9), D],
      {"single_token": True}, ("q", None)),
    ("decode that cannot prefill waits for prefill", [replace(D, features=NO_LOCAL)], {}, None),
    ("and another prefills itself", [replace(D, features=NO_LOCAL), worker("e", "decode", running_requests=5)], {},
      (None, "e")),
    ("with prefill it serves", [P, replace(D, features=NO_LOCAL)], {}, ("p", "d")),
    ("an adapter is asked of those that list it",
      [P, D, worker("q", "prefill", adapters=SQL, waiting_tokens=9), worker("e", "decode", adapters=SQL)],
      {"identity": ASKED_SQL}, ("q", "e")),
    ("prefill does not list the adapter", [P, replace(D, adapters=SQL)], {"identity": ASKED_SQL},
      (None, "d")),
    ("nobody lists the adapter", [replace(P, adapters=SQL), D], {"identity": ASKED_SQL}, None),
    ("another adapter of the same name", [replace(P, adapters=SQL), replace(D, adapters=SQL,
      adapter_digests={"sql": "2"})], {"identity": ASKED_SQL}, None),
    ("an adapter with the name of the model is the model", [replace(P, adapters=SQL, model="sql"), D],
      {"identity": ASKED_SQL}, None),
    ("one name, other weights", [P, replace(D, digest="E"), worker("e", "decode", running_requests=9)], {},
      ("p", "e")),
    ("the same weights under another name", [replace(P, model="n"), D], {}, (None, "d")),
    ("the model itself is asked of all", [P, replace(D, adapters=SQL)], {}, ("p", "d")),
    ("a format that has begun goes on where it can", [P, replace(D, features=NO_FORMAT),
      worker("e", "decode", running_requests=5)], {"prompt": Prompt(resumes_format=True)}, ("p", "e")),
    ("or nowhere", [P, replace(D, features=NO_FORMAT)], {"prompt": Prompt(resumes_format=True)}, None),
    ("a new one anywhere", [P, replace(D, features=NO_FORMAT)], {}, ("p", "d")),
]  # fmt: skip


@pytest.mark.parametrize(("workers", "options", "wanted"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_pair_of_the_table_is_chosen(
    workers: list[Worker], options: dict[str, Any], wanted: tuple[str | None, str | None] | None
) -> None:
    assert names(pick(workers, **options)) == wanted


@pytest.mark.parametrize(
    ("workers", "full", "wanted"),
    [
        ([], (), "decode"),
        ([P], (), "decode"),
        ([D], (), "decode"),
        ([replace(D, features=NO_LOCAL)], (), "prefill"),
        ([replace(D, features=NO_LOCAL)], {"d/1"}, "decode"),
        ([replace(D, features=NO_LOCAL), worker("e", "decode")], (), "decode"),
        ([replace(D, features=NO_LOCAL, digest="E")], (), "decode"),
        ([replace(D, features=NO_LOCAL, state="draining")], (), "decode"),
    ],
)
def test_a_request_without_workers_waits_for_the_pool_that_is_missing(
    workers: list[Worker], full: set[str], wanted: str
) -> None:
    assert scarce_pool(workers, identity=Identity("m", "D"), full=full) == wanted


def test_while_the_layout_of_the_kv_changes_each_layout_gets_what_its_pairs_can_take() -> None:
    workers = [worker(f"p{i}", "prefill", compat="c" if i < 3 else "2") for i in range(4)]
    workers += [worker(f"d{i}", "decode", compat="c" if i < 1 else "2") for i in range(4)]
    dice = random.Random(1).random
    chosen = [pick(workers, dice=dice) for _ in range(1000)]
    assert 400 < sum(c is not None and c.decode is not None and c.decode.compat == "c" for c in chosen) < 600
    # Where one layout is full, the other takes all.
    full = {w.incarnation for w in workers if w.role == "decode" and w.compat == "2"}
    assert {names(pick(workers, dice=dice, full=full))[1] for _ in range(50)} == {"d0"}  # type: ignore[index]


@st.composite
def pools(draw: st.DrawFn) -> list[Worker]:
    return [
        worker(
            f"w{i}",
            draw(st.sampled_from(["prefill", "decode", "both"])),
            state=draw(st.sampled_from(["ready", "ready", "draining", "starting"])),
            compat=draw(st.sampled_from("cc2")),
            digest=draw(st.sampled_from("DDE")),
            running_requests=draw(st.integers(0, 12)),
            waiting_tokens=draw(st.integers(0, 3)),
            blocks_free=draw(st.integers(0, 100)),
        )
        for i in range(draw(st.integers(0, 6)))
    ]


@given(pools(), st.data(), st.booleans(), st.integers())
def test_a_choice_is_always_of_ready_fitting_workers_that_nobody_avoids(
    workers: list[Worker], data: st.DataObject, single: bool, seed: int
) -> None:
    keys = [w.incarnation for w in workers] + [pair_key(p, d) for p in workers for d in workers]
    some = st.sets(st.sampled_from(keys)) if keys else st.just(set[str]())
    avoided, full, proven = data.draw(some), data.draw(some), data.draw(some)
    dice = random.Random(seed).random
    choice = pick(workers, avoid=avoided.__contains__, full=full, proven=proven, single_token=single, dice=dice)
    usable = [w for w in workers if w.state == "ready" and w.digest == "D" and w.incarnation not in avoided | full]
    decodes = [w for w in usable if w.role != "prefill"]
    prefills = [w for w in usable if w.role != "decode"]
    pairs = [(p, d) for p in prefills for d in decodes if p.compat == d.compat and pair_key(p, d) not in avoided]
    if choice is None:
        assert not decodes
        assert not (single and prefills)
        return
    assert choice.prefill is None or choice.prefill in prefills
    assert choice.decode is None or choice.decode in decodes
    if choice.decode is None:
        assert single
        assert choice.prefill is not None
        assert choice.prefill.waiting_tokens == min(p.waiting_tokens for p in prefills)
    elif choice.prefill is not None:
        assert (choice.prefill, choice.decode) in pairs
    else:
        # Decode prefills locally only where no pair is possible, where the pair would be decode
        # itself, or where all workers do both: no worker is asked to send KV.
        assert not pairs or (choice.decode, choice.decode) in pairs or all(w.role == "both" for w in usable)
    if choice.decode is not None and choice.prefill is not None and not proven:
        alike = [d for _, d in pairs if d.compat == choice.decode.compat]
        assert choice.decode.running_requests == min(d.running_requests for d in alike)


def test_decodes_room_is_that_of_the_workers_that_the_kv_can_go_to() -> None:
    room = Room(10, 100, 1, 8, 0.02)
    workers = [
        P,
        D,
        replace(D, name="e", room=room),
        replace(D, name="f", room=replace(room, step_s=0.5)),
        replace(D, room=room, compat="other"),
        replace(D, room=room, state="draining"),
        replace(P, room=room),
    ]
    assert decode_room(workers, "c") == Room(20, 200, 2, 16, 0.5)
    assert decode_room([P, D], "c") is None


@given(pools(), st.integers(1, 5))
def test_handshakes_are_due_for_fitting_pairs_of_separate_roles_alone(workers: list[Worker], limit: int) -> None:
    everything = handshake_pairs(workers, 1000)
    assert all(
        p.role == "prefill"
        and d.role == "decode"
        and (p.compat, p.identity) == (d.compat, d.identity)
        and p.state == d.state == "ready"
        for p, d in everything
    )
    sampled = handshake_pairs(workers, limit)
    assert set(sampled) <= set(everything)
    assert len(sampled) <= max(limit, len(workers))


def test_of_many_pairs_each_worker_has_one_and_only_pairs_that_fit() -> None:
    prefills = [worker(f"p{i}", "prefill") for i in range(2)]
    decodes = [worker(f"d{i}", "decode", compat="c" if i < 3 else "2") for i in range(4)]
    pairs = [(p.name, d.name) for p, d in handshake_pairs([*decodes, *prefills], limit=3)]
    assert pairs == [("p0", "d0"), ("p1", "d1"), ("p0", "d2")]
    assert len(handshake_pairs([*decodes, *prefills], limit=6)) == 6


def test_what_failed_is_avoided_for_longer_each_time_until_it_succeeds() -> None:
    breaker, now_s, waits = Breaker(), 0.0, []
    for _ in range(7):
        breaker.failed("k", now_s)
        started_s = now_s
        while breaker.is_open("k", now_s):
            now_s += 0.5
        waits.append(now_s - started_s)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    breaker.succeeded("k")
    breaker.failed("k", now_s)
    assert not breaker.is_open("k", now_s + 1)


def test_many_requests_that_one_fault_ended_count_as_one_failure() -> None:
    breaker = Breaker()
    for i in range(64):
        breaker.failed("k", i * 0.01)
    assert not breaker.is_open("k", 1.0)


def test_a_pair_that_fails_for_days_stays_avoided() -> None:
    """The value of 2**1024 is beyond every float."""
    breaker, now_s = Breaker(), 0.0
    for _ in range(3000):
        breaker.failed("k", now_s)
        assert breaker.is_open("k", now_s + 0.9)
        now_s += 30


def test_the_breaker_forgets_workers_that_are_gone() -> None:
    breaker = Breaker()
    for key in ("a", "a|b", "a|c"):
        breaker.failed(key, 0.0)
    breaker.keep_only({"a", "b"}, 0.5)
    assert len(breaker._failed) == 3
    breaker.keep_only({"a", "b"}, 5.0)
    assert set(breaker._failed) == {"a", "a|b"}
