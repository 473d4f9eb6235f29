"""Tests of the check that only the engines' modules know the names of engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.check_engine_names import ROOT, is_module_of_an_engine, names_in, problems


def test_today_nothing_else_names_an_engine() -> None:
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        'if engine == "vllm": pass',
        'if engine in ("sglang", other): pass',
        'x = {"lmdeploy": 1}',
        'f("vllm")',
        "from disagg_wire.engines import VLLM",
        "if name != engines.SGLANG: pass",
        'if engine == "builtin": pass',
        "if engine is not BUILTIN: pass",
        "x = {BUILTIN: 1}",
        'match x:\n    case "vllm": pass',
        'match x:\n    case "builtin": pass',
    ],
)
def test_a_question_for_the_name_is_found(line: str) -> None:
    assert names_in(line)


@pytest.mark.parametrize(
    "line",
    [
        '"""vllm"""',
        'f("vllm is an engine", "vllm:num_requests_running")',
        "if name not in ADAPTED: pass",
        "DEFAULT = BUILTIN",
        "from disagg_wire.engines import BUILTIN",
        "match x:\n    case 1: y = BUILTIN",
        "x = {**y}",
    ],
)
def test_what_asks_nothing_is_left_alone(line: str) -> None:
    assert names_in(line) == []


def test_the_engines_modules_may(tmp_path: Path) -> None:
    assert is_module_of_an_engine("worker/disagg_adapter/engines/vllm.py")
    assert is_module_of_an_engine("worker/disagg_adapter/vllm/client.py")
    assert is_module_of_an_engine("worker/disagg_wire/engines.py")
    assert is_module_of_an_engine("worker/disagg_adapter/engines/table.py")
    assert not is_module_of_an_engine("operator/disagg_operator/engines/contract.py")
    for name in ("operator/a/vllm.py", "operator/a/other.py", "worker/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x = 1\ny = "sglang"\n')
    assert [line.partition(": ")[0] for line in problems(tmp_path)] == ["operator/a/other.py:2", "worker/b.py:2"]
