"""Tests of what the bundled worker refuses and needs."""

from __future__ import annotations

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import InvalidResource, parse
from disagg_operator.engines.builtin import ENGINE


def test_it_speaks_the_protocol_itself() -> None:
    assert (ENGINE.process, ENGINE.image) == (None, None)


def test_adapters_are_refused_by_their_field() -> None:
    with pytest.raises(InvalidResource, match=r"^spec.model.adapters: engine.type builtin has no model.adapters$"):
        parse(good(model={"adapters": [{"name": "a", "uri": "file:///a"}]}))
