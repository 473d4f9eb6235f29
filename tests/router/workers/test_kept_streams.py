"""Tests of what workers say that they keep."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.router.workers.infos import worker

from disagg_router.workers.kept_streams import KeptStream, choices_of, last_run, parse_streams

W = worker("d0", "decode")
ENTRY: dict[str, Any] = {
    "name": "a", "run": "1", "epoch": 0, "leg": "decode", "body": "b", "began_ms": 5, "seed": 7, "prompt_tokens": 3,
    "tokens": 4, "first": {"type": "token", "index": 0, "token": 9},
}  # fmt: skip
ONE = KeptStream(W, "a", "1", 0, "decode", "b", 5, 7, 3, 4, ENTRY["first"])


def test_what_a_worker_says_is_read() -> None:
    assert parse_streams(W, json.dumps({"streams": [ENTRY]}).encode()) == [ONE]
    assert parse_streams(W, b'{"streams":[]}') == []


@pytest.mark.parametrize(
    "wrong",
    [b"", b"[]", b"{}", b'{"streams":5}', b'{"streams":[5]}', b"[" * 100_000]
    + [
        json.dumps({"streams": [ENTRY | change]}).encode()
        for change in ({"epoch": "0"}, {"seed": -1}, {"tokens": 1 << 21}, {"began_ms": 1.5}, {"prompt_tokens": True},
                       {"leg": "both"}, {"first": 5})
    ],
)  # fmt: skip
def test_what_is_garbled_is_no_answer(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="garbles what it keeps"):
        parse_streams(W, wrong)


def test_the_last_answer_to_the_same_request_counts() -> None:
    other = worker("d1", "decode", digest="other")
    again = replace(ONE, run="2", began_ms=6)
    found = [ONE, replace(ONE, body="c", began_ms=9), again, replace(again, worker=other, epoch=1)]
    assert last_run(found[:3], "b") == [again]
    assert last_run(found[:1], "b") == [ONE]
    assert last_run(found, "x") == []
    assert {s.worker.digest for s in last_run(found, "b")} == {last_run(found, "b")[0].worker.digest}


def test_of_each_choice_the_last_attempt_counts_and_who_knows_most() -> None:
    told = {"type": "token", "index": 4, "token": 1}
    parts = [
        replace(ONE, tokens=90),
        replace(ONE, epoch=1, tokens=5, leg="prefill", first=told),
        replace(ONE, epoch=1, tokens=5, first=None),
        replace(ONE, name="b", leg="prefill", tokens=1),
        replace(ONE, name="b", tokens=0, first={"index": "x"}),
    ]
    first, second, third = choices_of(parts, ["a", "b", "c"])
    assert first is not None
    assert first.stream is parts[2]
    assert first.events == {0: ENTRY["first"], 4: told}
    assert second is not None
    assert second.stream is parts[3]
    assert third is None
