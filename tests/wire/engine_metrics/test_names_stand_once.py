"""Every series of an engine is named in one place, from which all readers take it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from disagg_wire.engine_metrics import sglang, vllm
from disagg_wire.engine_metrics.engine_series import EngineSeries
from disagg_wire.engine_metrics.sample_table import names_read, selected

ROOT = Path(__file__).parents[3]
HOME = ROOT / "worker/disagg_wire/engine_metrics"
_NAME = re.compile(r"(vllm|sglang|lmdeploy):[a-z0-9]+_\w+")


def named(path: Path) -> list[str]:
    """Return the series that the texts of a module name."""
    source = path.read_text()
    if not _NAME.search(source):  # parsing takes long
        return []
    texts = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)]
    return [found[0] for text in texts if isinstance(text, str) for found in _NAME.finditer(text)]


@pytest.mark.parametrize("module", ["vllm", "sglang", "lmdeploy"])
def test_a_module_names_each_series_of_its_engine_once(module: str) -> None:
    names = Counter(named(HOME / f"{module}.py"))
    assert len(names) >= 10
    assert {name for name, n in names.items() if n > 1} == set()


def test_nobody_else_names_one() -> None:
    packages = [p for part in ("operator", "worker") for p in (ROOT / part).glob("disagg_*")]
    others = [p for package in packages for p in package.rglob("*.py") if HOME not in p.parents]
    assert len(others) > 300
    assert {str(path.relative_to(ROOT)): found for path in others if (found := named(path))} == {}


@pytest.mark.parametrize("engine", [vllm, sglang])
def test_what_scalers_read_is_on_the_list_or_of_the_engine_alone(engine: ModuleType) -> None:
    series: EngineSeries = engine.SERIES
    listed = {selected(name)[0] for f in fields(series) for name in _texts(getattr(series, f.name))}
    read = {name.removesuffix(part) for name in names_read(engine.pool_readings_of) for part in ("_sum", "_count")}
    for quantity in ("prompt_lengths", "ttft", "running", "waiting", "kv_usage", "computed_tokens"):
        assert {selected(name)[0] for name in _texts(getattr(series, quantity))} <= read, quantity
    assert len(listed & read) >= 12


def _texts(value: object) -> list[str]:
    return [text for text in value if ":" in text] if isinstance(value, tuple) else []
