"""The Hypothesis profile that a run gets."""

from __future__ import annotations

import pytest
from hypothesis import settings
from tests import profiles


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "default"),
        ({"CI": ""}, "default"),
        ({"CI": "true"}, "ci"),
        ({"CI": "true", "HYPOTHESIS_PROFILE": "long"}, "long"),
        ({"HYPOTHESIS_PROFILE": ""}, "default"),
    ],
)
def test_the_environment_chooses_the_profile(environment: dict[str, str], expected: str) -> None:
    assert profiles.chosen(environment) == expected


def test_no_profile_has_a_deadline_and_this_run_has_one_of_them() -> None:
    assert [profile.deadline for profile in profiles.PROFILES.values()] == [None, None, None]
    assert settings.get_current_profile_name() in profiles.PROFILES


def test_a_tests_own_number_of_examples_grows_in_the_long_profile() -> None:
    mine = settings.get_current_profile_name()
    try:
        counts = []
        for name in profiles.PROFILES:
            settings.load_profile(name)
            counts.append(profiles.examples(60))
    finally:
        settings.load_profile(mine)
    assert counts == [60, 60, 600]
