"""Tests of the recorder of conversations, on an engine that replays one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.adapter.engines import player
from tests.fakes.scripted_engine import load_conversation, scripted
from tests.gpu.record_engines import CONVERSATIONS, record, record_pair, recordable, recorded_header, write

from disagg_adapter.engines import lmdeploy

NAMES = [
    "sglang/identify_both",
    "sglang/generate_logprobs",
    "sglang/generate_refused_by_contract",
    "sglang/generate_dies",
    "sglang/generate_cancel_before_first",
    "sglang/generate_cancel_mid_stream",
    "lmdeploy/generate_own_stop_token",
    "lmdeploy/generate_cancel_mid_stream",
]


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_recorded_is_what_is_replayed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdeploy, "TOO_LONG", 2048)
    async with scripted(CONVERSATIONS / f"{name}.jsonl") as peer:
        outcome, steps = await record(peer.header, peer.url)
        await peer.finish()
        assert outcome == peer.header["outcome"]
    copy = tmp_path / "copy.jsonl"
    write(copy, recorded_header(peer.header, outcome, steps), steps)
    async with scripted(copy) as again:
        engine = player.engine_of(again.header, again.url)
        try:
            assert await player.play(engine, again.header["call"], again.hanging) == outcome
            await again.finish()
        finally:
            await engine.close()
    assert load_conversation(copy).header["recorded"] is True


async def test_a_hand_over_is_recorded_on_both_sides() -> None:
    async with (
        scripted(CONVERSATIONS / "sglang/prefill.jsonl") as first,
        scripted(CONVERSATIONS / "sglang/decode.jsonl") as second,
    ):
        # The recorder tells prefill the address at which it is reached.
        for peer in (first, second):
            peer.steps[-1]["request"]["body"]["bootstrap_host"] = "127.0.0.1"
        outcome, at_prefill, at_decode = await record_pair({"engine": "sglang"}, first.url, second.url)
        await first.finish()
        await second.finish()
    assert outcome["tokens"] == [21, 22, 2]
    assert at_prefill[-1]["answer"]["json"]["output_ids"] == [21]
    assert [e["data"]["output_ids"] for e in at_decode[-1]["answer"]["events"]] == [[21], [22], [2]]


@pytest.mark.parametrize("engine", ["sglang", "lmdeploy"])
def test_failures_are_not_asked_of_a_real_engine(engine: str) -> None:
    chosen = {path.stem for path in (CONVERSATIONS / engine).glob("*.jsonl") if recordable(path)}
    assert {"generate", "generate_choice", "generate_cancel_mid_stream", "identify_both"} <= chosen
    assert not any(word in name for name in chosen for word in ("dies", "aborted", "prefill", "decode", "lora"))
