"""Tests of the conversations' calls on a real SGLang or LMDeploy engine.

DISAGG_TEST_ENGINE is its name, DISAGG_TEST_ENGINE_URL its address, DISAGG_TEST_ENGINE_MODEL the
name of its model; with DISAGG_TEST_PREFILL_URL, the two are a pair and the first address is
decode's. They have never been run: no GPU was available.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.scripted_engine import load_conversation
from tests.gpu.record_engines import CONVERSATIONS, record, record_pair, recordable

ENGINE = os.environ["DISAGG_TEST_ENGINE"]
URL = os.environ["DISAGG_TEST_ENGINE_URL"]
PREFILL_URL = os.environ.get("DISAGG_TEST_PREFILL_URL")
OPTIONS = {"model": os.environ.get("DISAGG_TEST_ENGINE_MODEL", "m"), "experimental": True}
FILES = [path for path in sorted((CONVERSATIONS / ENGINE).glob("*.jsonl")) if recordable(path)]


def shape(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the model."""
    if "tokens" in outcome:
        return {"tokens": bool(outcome["tokens"]), "ended": outcome["finish"] is not None}
    return {name: value for name, value in outcome.items() if name in ("fault", "refused", "unusable", "alive")}


@pytest.mark.skipif(PREFILL_URL is not None, reason="the engines are a pair")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_the_engine_does_what_its_source_was_read_to_do(path: Path) -> None:
    header = load_conversation(path).header
    outcome, steps = await record(header | {"options": header.get("options", {}) | OPTIONS}, URL)
    assert shape(outcome) == shape(header["outcome"]), steps[-1]


@pytest.mark.skipif(PREFILL_URL is None, reason="the engine is alone")
async def test_a_prompt_is_handed_over() -> None:
    header = {"engine": ENGINE, "options": OPTIONS}
    outcome, *_ = await record_pair(header, str(PREFILL_URL), URL)
    assert outcome["tokens"]
    assert outcome["finish"] in ("stop", "length")
