"""The versions of the renderer."""

from __future__ import annotations

from disagg_operator.desired import renderer
from disagg_operator.desired.facts import Images


def test_the_steps_are_versions_after_the_first_one_up_to_the_current_one() -> None:
    steps = {name: value for name, value in vars(renderer).items() if isinstance(value, int)}
    assert (steps.pop("FIRST"), steps.pop("CURRENT")) == (1, max([1, *steps.values()]))
    assert all(value > renderer.FIRST for value in steps.values())


def test_whoever_names_no_version_renders_with_the_current_one() -> None:
    assert Images().renderer == renderer.CURRENT
