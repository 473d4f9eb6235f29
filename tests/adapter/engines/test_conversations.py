"""Tests of SGLang's and LMDeploy's modules on conversations written down from their sources."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from tests.adapter.engines import player
from tests.fakes.scripted_engine import load_conversation, scripted

from disagg_adapter.engines import lmdeploy, sglang

FOLDER = Path(__file__).parent / "conversations"
FILES = sorted(FOLDER.glob("*/*.jsonl"))
KNOWN = {"sglang": set(sglang.VERSIONS), "lmdeploy": set(lmdeploy.VERSIONS.values())}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_conversation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not path.stem.startswith("identify"):
        monkeypatch.setattr(lmdeploy, "TOO_LONG", 2048)  # a million tokens take most of a second
    async with scripted(path) as peer:
        engine = player.engine_of(peer.header, peer.url)
        try:
            found = await player.play(engine, peer.header["call"], peer.hanging)
            assert not peer.problems
            assert found == peer.header["outcome"]
            await peer.finish()
        finally:
            await engine.close()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_header_says_where_the_conversation_comes_from(path: Path) -> None:
    header = load_conversation(path).header
    assert header["engine"] == path.parent.name
    assert any(header["version"].startswith(known) for known in KNOWN[header["engine"]])
    assert header["about"]
    assert header["sources"] or header["recorded"]
    date.fromisoformat(header["date"])


def test_every_version_that_is_known_has_conversations() -> None:
    headers = [load_conversation(path).header for path in FILES]
    for engine, versions in KNOWN.items():
        for version in versions:
            assert any(h["engine"] == engine and h["version"].startswith(version) for h in headers), version
