"""Tests that the table of capabilities in docs/engines.md is what adapters advertise and refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.engines import player
from tests.adapter.engines.test_conversations import FOLDER
from tests.fakes.scripted_engine import load_conversation

from disagg_adapter.engines import vllm
from disagg_operator.engines import BY_NAME
from disagg_protocol.errors import InvalidInput
from disagg_wire.engines import ADAPTED
from disagg_wire.protocol import (
    FEATURE_ADAPTER,
    FEATURE_EXPERIMENTAL,
    FEATURE_FIRST_TOKEN_FROM_DECODE,
    FEATURE_NO_LOCAL_PREFILL,
    FEATURE_SEED_LOST,
    FEATURE_SOFT_TICKET,
    FEATURE_STRUCTURED_NOT_RESUMED,
)

NO = "–"
# The features that each engine's workers can have. What identifies SGLang and LMDeploy is checked
# against their modules by the conversations.
ADVERTISED: dict[str, list[set[str]]] = {
    "vllm": [set(vllm._CANNOT) | {FEATURE_ADAPTER}],
    **{
        engine: [
            set(identity["features"])
            for path in sorted((FOLDER / engine).glob("identify_*.jsonl"))
            if (identity := load_conversation(path).header["outcome"].get("identity"))
        ]
        for engine in ("sglang", "lmdeploy")
    },
}


def _table() -> dict[str, dict[str, str]]:
    """Return the rows of the table, by capability and engine."""
    text = (Path(__file__).parents[1] / "docs" / "engines.md").read_text(encoding="utf-8")
    block = text[text.index("| capability |") :].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block if "---" not in line]
    columns = [name.lower() for name in cells[0][1:]]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in cells[1:]}


TABLE = _table()


def _some(engine: str, feature: str) -> bool:
    return any(feature in features for features in ADVERTISED[engine])


def _all(engine: str, feature: str) -> bool:
    return all(feature in features for features in ADVERTISED[engine])


@pytest.mark.parametrize("engine", ADAPTED)
def test_the_table_says_what_workers_advertise(engine: str) -> None:
    def cell(row: str) -> str:
        return TABLE[row][engine]

    visible = cell("room reserved in the engine before prefill") not in (NO, "in the engine, not visible")
    assert _some(engine, FEATURE_SOFT_TICKET) == (not visible)
    assert _some(engine, FEATURE_FIRST_TOKEN_FROM_DECODE) == (cell("first token comes from") == "decode")
    alone = cell("without prefill workers, decode computes prompts")
    assert _some(engine, FEATURE_NO_LOCAL_PREFILL) == (alone == NO)
    seeds = cell("seeds survive a failover")
    assert _all(engine, FEATURE_SEED_LOST) == (seeds == NO)
    assert _some(engine, FEATURE_SEED_LOST) == (seeds == NO or seeds.startswith("with `--"))
    assert _all(engine, FEATURE_STRUCTURED_NOT_RESUMED) == (cell("output formats survive a failover") == NO)
    pools = cell("prefill and decode on separate pools")
    assert _some(engine, FEATURE_EXPERIMENTAL) == ("experimental" in pools)
    loaded = "model.adapters" not in BY_NAME[engine].limits.absent
    assert (loaded and _all(engine, FEATURE_ADAPTER)) == (cell("LoRA adapters") != NO)


GRAMMAR = {"kind": "grammar", "value": 'start: "a"'}
SCHEMA = {"kind": "json_schema", "value": '{"type": "object"}'}


@pytest.mark.parametrize("engine", ADAPTED)
@pytest.mark.parametrize(
    ("row", "sampling"),
    [
        ("presence and frequency penalty", {"presence_penalty": 1.0}),
        ("presence and frequency penalty", {"frequency_penalty": 1.0}),
        ("log probabilities with alternatives", {"logprobs": 2}),
        ("logit bias, stop tokens", {"logit_bias": [[5, 1.0]], "stop_token_ids": [7]}),
        ("JSON schema, regular expression, choice", {"structured": SCHEMA}),
        ("JSON schema, regular expression, choice", {"structured": {"kind": "regex", "value": "a+"}}),
        ("JSON schema, regular expression, choice", {"structured": {"kind": "choice", "value": '["a", "b"]'}}),
        ("Lark grammar", {"structured": GRAMMAR}),
    ],
)
async def test_what_the_table_denies_is_refused_by_the_field_and_nothing_else_is(
    engine: str, row: str, sampling: dict[str, Any]
) -> None:
    found = player.engine_of({"engine": engine}, "http://127.0.0.1:1")
    found.__dict__["_longest"] = 1 << 16
    work = player.work_of({"sampling": sampling})
    cell = TABLE[row][engine]
    if cell != NO and "only" not in cell:
        found.check(work)
        return
    (field,) = sampling
    with pytest.raises(InvalidInput, match=rf"^sampling\.{field}\b"):
        found.check(work)


def test_every_cell_says_run_replayed_or_how_it_is_without_doubt() -> None:
    known = re.compile(r"\brun\b|\bnot run\b|replayed|unit|^–$|^off$|^decode$|^prefill$|not visible|Unknown|Configured")
    assert [(row, e) for row, cells in TABLE.items() for e, cell in cells.items() if not known.search(cell)] == []
