"""Pair choice: only ready workers that can talk and that nobody has reason to avoid; the least loaded of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.workers import (
    Breaker,
    Choice,
    Inflight,
    Member,
    Worker,
    choose,
    handshake_pairs,
    model_of,
    pair_key,
    parse_info,
)

IDLE = Inflight({}, {})
BASE = Worker(
    name="w", url="http://w", pod="w", incarnation="w/1", role="decode", state="ready", revision="r", compat="c", interface="net1",
    transport="tcp", digest="m", max_model_len=100, vocab_size=50, eos_token_ids=(0,), bos_token_id=None, block_size_tokens=16,
    blocks_total=100, blocks_free=100, max_running=10, waiting_requests=0, waiting_tokens=0, running_requests=0,
)  # fmt: skip


def worker(name: str, role: str, **fields: Any) -> Worker:
    return replace(BASE, name=name, pod=name, incarnation=f"{name}/1", role=role, **fields)


def pick(workers: list[Worker], **fields: Any) -> Choice | None:
    values: dict[str, Any] = {"digest": "m", "single_token": False, "avoid": lambda _: False, "full": (), "proven": (), "inflight": IDLE,
                              "dice": lambda: 0.0}  # fmt: skip
    return choose(workers, **(values | fields))


def names(choice: Choice | None) -> tuple[str | None, str | None] | None:
    if choice is None:
        return None
    return (choice.prefill.name if choice.prefill else None), (choice.decode.name if choice.decode else None)


P, D = worker("p", "prefill"), worker("d", "decode")
B = worker("b", "both")
BUSY = replace(D, name="busy", incarnation="busy/1", running_requests=5)
LITTLE_KV = replace(D, name="little", incarnation="little/1", blocks_free=10)
LONG_QUEUE = replace(P, name="long", incarnation="long/1", waiting_tokens=900)


@pytest.mark.parametrize(
    ("workers", "fields", "wanted"),
    [
        ([], {}, None),
        ([P], {}, None),
        ([D], {}, (None, "d")),
        ([P, D], {}, ("p", "d")),
        ([B], {}, (None, "b")),
        ([P], {"single_token": True}, ("p", None)),
        ([D], {"single_token": True}, (None, "d")),
        ([P, D], {"single_token": True}, ("p", None)),
        ([P, replace(D, state="draining")], {}, None),
        ([P, replace(D, state="starting")], {}, None),
        ([replace(P, state="draining"), D], {}, (None, "d")),
        ([P, replace(D, compat="other")], {}, (None, "d")),
        ([P, replace(D, digest="other")], {}, None),
        ([P, BUSY, D], {}, ("p", "d")),
        ([P, LITTLE_KV, D], {}, ("p", "d")),
        ([LONG_QUEUE, P, D], {}, ("p", "d")),
        ([P, BUSY, D], {"full": {"d/1"}}, ("p", "busy")),
        ([P, BUSY, D], {"avoid": {"d/1"}.__contains__}, ("p", "busy")),
        ([P, BUSY, D], {"avoid": {"p/1|d/1"}.__contains__}, ("p", "busy")),
        ([P, D], {"avoid": {"p/1|d/1"}.__contains__}, (None, "d")),
        ([P, D], {"avoid": {"p/1"}.__contains__}, (None, "d")),
        ([P, BUSY, D], {"proven": {"p/1", "busy/1"}}, ("p", "busy")),
        ([P, BUSY, D], {"proven": {"p/1", "busy/1"}, "full": {"busy/1"}}, ("p", "d")),
        ([P, BUSY, D], {"inflight": Inflight({"d/1": 9}, {})}, ("p", "busy")),
        ([P, LONG_QUEUE, D], {"inflight": Inflight({}, {"p/1": 1000})}, ("long", "d")),
    ],
)
def test_who_is_chosen(workers: list[Worker], fields: dict[str, Any], wanted: tuple[str | None, str | None] | None) -> None:
    assert names(pick(workers, **fields)) == wanted


def test_equal_loads_are_told_apart_by_the_dice() -> None:
    twins = [P, *(replace(D, name=f"d{i}", incarnation=f"d{i}/1") for i in range(3))]
    for lucky in range(3):
        throws = iter([0.0, *(0.0 if i == lucky else 1.0 for i in range(3))])
        assert names(pick(twins, dice=lambda t=throws: next(t))) == ("p", f"d{lucky}")


fleets = st.lists(
    st.builds(
        lambda i, role, state, compat, digest, running, tokens: worker(
            f"w{i}", role, state=state, compat=compat, digest=digest, running_requests=running, waiting_tokens=tokens
        ),
        st.integers(0, 10**6), st.sampled_from(["prefill", "decode", "both"]), st.sampled_from(["ready", "ready", "draining", "starting"]),
        st.sampled_from("ab"), st.sampled_from(["m", "m", "other"]), st.integers(0, 20), st.integers(0, 5000),
    ),
    max_size=8, unique_by=lambda w: w.name,
)  # fmt: skip


@given(fleet=fleets, data=st.data(), single=st.booleans())
def test_a_choice_can_always_serve_and_there_is_one_whenever_a_decode_worker_is_usable(
    fleet: list[Worker], data: st.DataObject, single: bool
) -> None:
    keys = [w.incarnation for w in fleet]
    subset: Callable[[], frozenset[str]] = lambda: data.draw(st.frozensets(st.sampled_from(keys))) if keys else frozenset()  # noqa: E731
    full, avoided, proven = subset(), subset(), subset()
    choice = pick(fleet, single_token=single, full=full, avoid=avoided.__contains__, proven=proven)
    usable = [w for w in fleet if w.state == "ready" and w.digest == "m" and w.incarnation not in full | avoided]
    if choice is None:
        assert not any(w.serves("decode") for w in usable)
        assert not (single and any(w.serves("prefill") for w in usable))
        return
    for role, chosen in (("prefill", choice.prefill), ("decode", choice.decode)):
        assert chosen is None or (chosen in usable and chosen.serves(role))
    if choice.prefill is not None and choice.decode is not None:
        assert choice.prefill.compat == choice.decode.compat
        assert choice.prefill.incarnation != choice.decode.incarnation
    assert choice.prefill is not None or choice.decode is not None


def test_new_requests_go_to_the_model_that_a_pair_serves_with_the_smallest_of_its_limits() -> None:
    new = [worker("n1", "decode", digest="z"), worker("n2", "decode", digest="z")]
    assert model_of([]) is None
    assert model_of([replace(P, state="starting")]) is None
    found = model_of([P, replace(D, max_model_len=60), *new])
    assert found is not None
    assert (found.digest, found.max_model_len) == ("m", 60)
    assert model_of(new).digest == "z"  # type: ignore[union-attr]


def test_the_breaker_waits_longer_after_each_failure_and_forgets_with_success() -> None:
    breaker = Breaker(first_s=1.0, longest_s=4.0)
    ends = []
    now_s = 0.0
    for _ in range(5):
        breaker.failed("a", now_s)
        assert breaker.is_open("a", now_s)
        step = next(s for s in (1.0, 2.0, 4.0, 8.0) if not breaker.is_open("a", now_s + s))
        ends.append(step)
        now_s += step
    assert ends == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert not breaker.is_open("b", now_s)
    breaker.succeeded("a")
    breaker.failed("a", now_s)
    assert not breaker.is_open("a", now_s + 1.0)


def test_the_breaker_forgets_the_gone_but_not_before_their_time() -> None:
    breaker = Breaker(first_s=10.0)
    breaker.failed("p|d", 0.0)
    breaker.keep_only({"d"}, 5.0)
    assert breaker.is_open("p|d", 5.0)
    breaker.keep_only({"d"}, 20.0)
    breaker.failed("p|d", 20.0)
    assert not breaker.is_open("p|d", 30.0)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 150))
def test_handshakes_cover_every_worker_and_are_bounded(prefills: int, decodes: int, limit: int) -> None:
    fleet = [worker(f"p{i}", "prefill") for i in range(prefills)] + [worker(f"d{i}", "decode") for i in range(decodes)]
    pairs = handshake_pairs(fleet, limit)
    assert len({pair_key(p, d) for p, d in pairs}) == len(pairs)
    assert len(pairs) <= max(limit, prefills, decodes)
    if prefills and decodes:
        assert {w.name for pair in pairs for w in pair} == {w.name for w in fleet}
    else:
        assert pairs == []


INFO = {
    "protocol": 1, "incarnation": "u/e", "pod": "x", "role": "decode", "state": "ready", "revision": "5d8f",
    "model": {"name": "chat", "digest": "s", "vocab_size": 2048, "max_model_len": 2048, "eos_token_ids": [0], "bos_token_id": None},
    "kv": {"compat": "s", "host": "10.56.0.7", "port": 9000, "interface": "net1", "transport": "tcp", "block_size_tokens": 16,
           "bytes_per_token": 6144, "blocks_total": 4096, "blocks_free": 4000},
    "limits": {"max_running": 64, "max_waiting": 256}, "load": {"waiting_requests": 0, "waiting_tokens": 0, "running_requests": 0},
}  # fmt: skip


def test_info_as_the_protocol_describes_it_is_understood() -> None:
    found = parse_info(Member("n", "http://n"), INFO)
    assert found is not None
    assert (found.name, found.pod, found.eos_token_ids, found.blocks_free) == ("n", "x", (0,), 4000)
    assert parse_info(Member("n", "http://n"), {k: v for k, v in INFO.items() if k not in ("model", "kv", "load")}) is None


@pytest.mark.parametrize(
    "change", [{"protocol": 2}, {"protocol": None}, {"kv": {}}, {"model": None}, {"load": 3}, {"limits": {"max_running": "x"}}]
)
def test_info_of_a_peer_that_we_can_not_speak_with_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse_info(Member("n", "http://n"), INFO | change)
