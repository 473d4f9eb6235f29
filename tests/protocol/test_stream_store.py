"""Tests of what is kept of streams: names, bounds and times."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.bodies import DecodeRequest, PrefillRequest
from disagg_protocol.stream_store import StreamKey, StreamRecord, StreamStore, record_of

NAME, BODY = "a" * 64, "b" * 64


def record(name: str = NAME, run: str = "1", epoch: int = 0, leg: str = "decode", **more: Any) -> StreamRecord:
    return StreamRecord(StreamKey(name, run, epoch, leg), BODY, 5, 7, 3, **more)


def token(index: int, value: int, **more: Any) -> dict[str, Any]:
    return {"type": "token", "index": index, "token": value, **more}


def tokens_in(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def test_a_record_has_what_was_said_of_each_token() -> None:
    store, one = StreamStore(60, 1 << 20), record()
    store.begin(one, 0)
    said = [token(0, 9, cached_tokens=2), token(1, 8), token(2, 7, logprob=-1.5, top_logprobs=[[7, -1.5]])]
    for line in [{"type": "accepted", "path": "local"}, *said, {"type": "end", "finish_reason": "stop"}]:
        store.take(one, line)
    assert tokens_in(one.lines()) == said
    assert one.end == {"type": "end", "finish_reason": "stop"}
    assert one.described() == {
        "name": NAME, "run": "1", "epoch": 0, "leg": "decode", "body": BODY, "began_ms": 5, "seed": 7,
        "prompt_tokens": 3, "tokens": 3, "first": said[0],
    }  # fmt: skip


def test_tokens_of_earlier_attempts_and_the_one_of_prefill_are_known_by_their_ids() -> None:
    fields = {
        "request_id": "r", "epoch": 1, "tokens": [1, 2, 3, 40, 41], "prompt_tokens": 3, "deadline_s": 9.0,
        "sampling": {"seed": 6, "max_new_tokens": 8},
        "resume": {"name": NAME, "body": BODY, "run": "f0", "began_ms": 5, "cached_tokens": 2},
    }  # fmt: skip
    one = record_of(DecodeRequest.model_validate(fields | {"mode": "remote"}))
    assert one is not None
    one.take({"type": "accepted", "path": "remote", "first_token": 42})
    one.take(token(3, 43))
    assert tokens_in(one.lines()) == [token(0, 40, cached_tokens=2), token(1, 41), token(2, 42), token(3, 43)]
    assert (one.key, one.seed, one.first_own) == (StreamKey(NAME, "f0", 1, "decode"), 6, 2)
    assert one.described()["first"] is None
    prefill = record_of(PrefillRequest.model_validate(fields | {"ticket": None}))
    assert prefill is not None
    assert prefill.key.leg == "prefill"
    del fields["resume"]
    assert record_of(PrefillRequest.model_validate(fields | {"ticket": None})) is None


def test_a_stream_with_a_gap_is_not_kept() -> None:
    store, one = StreamStore(60, 1 << 20), record()
    store.begin(one, 0)
    store.take(one, token(1, 8))
    store.take(one, token(0, 8))
    assert one not in store
    assert (len(store), store.size_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("name", "run", "epoch", "leg", "stays"),
    [(NAME, "1", 1, "decode", True), (NAME, "1", 0, "prefill", True), ("c" * 64, "2", 0, "decode", True),
     (NAME, "2", 0, "decode", False), (NAME, "1", 0, "decode", False)],
)  # fmt: skip
def test_a_client_that_begins_anew_has_no_older_answer(name: str, run: str, epoch: int, leg: str, stays: bool) -> None:
    store, old = StreamStore(60, 1 << 20), record()
    store.begin(old, 0)
    new = record(name, run, epoch, leg)
    store.begin(new, 1)
    assert (old in store, new in store) == (stays, True)
    assert store.size_bytes == sum(r.size_bytes for r in store.find({NAME, name}, 1))
    store.drop(old)
    store.drop(old)
    assert store.get(new.key, 1) is new


def test_what_nobody_reads_is_kept_for_its_time() -> None:
    store, one = StreamStore(60, 1 << 20), record()
    store.begin(one, 0)
    assert store.find([NAME, "c" * 64], 1000) == [one]
    store.unread(one, 1000)
    assert store.get(one.key, 1059) is one
    store.read(one)
    assert store.get(one.key, 2000) is one
    store.unread(one, 2000)
    assert store.find([NAME], 2060) == []
    assert (len(store), store.size_bytes) == (0, 0)
    for call in (store.read, store.drop):
        call(one)
    store.unread(one, 3000)
    store.take(one, token(0, 1))
    assert len(store) == len(one.tokens) == 0


def test_of_a_thousand_streams_the_oldest_go_first_and_those_that_are_read_last() -> None:
    store = StreamStore(60, 300_000)
    read = record("f" * 64)
    store.begin(read, 0)
    for i in range(1000):
        one = record(f"{i:064x}")
        store.begin(one, i / 1000)
        for j in range(100):
            store.take(one, token(j, j, **({"logprob": -0.5, "top_logprobs": []} if j % 10 == 0 else {})))
        store.unread(one, i / 1000)
        assert store.size_bytes <= 300_000
    kept = [r for i in range(1000) for r in store.find([f"{i:064x}"], 1)]
    assert 50 < len(kept) < 300
    assert [r.key.name for r in kept] == [f"{i:064x}" for i in range(1000 - len(kept), 1000)]
    assert read in store
    for j in range(100_000):
        store.take(read, token(j, j))
    assert len(store) == store.size_bytes == 0


@given(st.lists(st.tuples(st.sampled_from("btuerd"), st.integers(0, 5), st.integers(0, 2)), max_size=60))
def test_the_bytes_are_those_of_what_is_kept(steps: list[tuple[str, int, int]]) -> None:
    store, known = StreamStore(10, 6000), dict[int, StreamRecord]()
    for now_s, (what, which, run) in enumerate(steps):
        one = known.get(which)
        if what == "b" or one is None:
            known[which] = one = record(f"{which:064x}", str(run))
            store.begin(one, now_s)
        elif what == "t":
            store.take(one, token(len(one.tokens), 1, **({"logprob": -1.0} if run else {})))
        elif what == "u":
            store.unread(one, now_s)
        elif what == "r":
            store.read(one)
        elif what == "d":
            store.drop(one)
        else:
            store.expire(now_s)
        kept = store.find([f"{i:064x}" for i in range(6)], now_s)
        assert store.size_bytes == sum(r.size_bytes for r in kept) <= 6000
        assert len(store) == len(kept)
        assert all(r in store for r in kept)
