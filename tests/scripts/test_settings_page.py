"""Tests of docs/settings.md: every setting is on it, with a description that has its unit."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from disagg_adapter.settings import Settings as AdapterSettings
from disagg_operator.settings import OperatorSettings
from disagg_router.settings import Settings as RouterSettings
from disagg_wire.environment import variable_of
from disagg_worker.settings import Settings as WorkerSettings

PAGE = (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8")
UNITS = {"_s": "second", "_bytes": "bytes", "_tokens": "tokens", "_len": "tokens"}


@pytest.mark.parametrize("settings", [OperatorSettings, RouterSettings, WorkerSettings, AdapterSettings])
def test_every_setting_is_on_the_page_with_a_description_that_has_its_unit(settings: type[BaseModel]) -> None:
    for field, info in settings.model_fields.items():
        description = info.description or ""
        assert description.endswith("."), field
        assert f"| `{variable_of(field)}` |" in PAGE
        assert f" {description} |" in PAGE
        for ending, unit in UNITS.items():
            assert not field.endswith(ending) or unit in description, field
