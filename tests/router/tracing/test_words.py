"""Tests that the documentation has every name of spans and attributes."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_router.tracing.exporter import DROPS
from disagg_router.tracing.tail_sampling import Kept
from disagg_router.tracing.words import Attribute, SpanName

PAGE = (Path(__file__).parents[3] / "docs/tracing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*SpanName, *Attribute, *Kept, *DROPS])
def test_each_name_is_described(name: str) -> None:
    assert f"`{name}`" in PAGE or f"\n  {name} " in PAGE or f"\n    {name} " in PAGE
