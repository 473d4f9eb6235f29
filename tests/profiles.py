"""Hypothesis profiles. None has deadlines: a test must not fail because the machine is busy.

`default` is for developers, `ci` takes the same examples in every run of the same code, and `long`
searches ten times as far. HYPOTHESIS_PROFILE chooses one; if it is not set, `ci` is used where CI
is set, and `default` elsewhere. Pytest's --hypothesis-profile takes precedence over both. A test
that states its own number of examples passes it to `examples`, so that `long` multiplies it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The parent is named because Hypothesis has loaded a profile of its own by now if CI is set.
DEFAULT = settings(
    settings.get_profile("default"), deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
PROFILES = {
    "default": DEFAULT,
    "ci": settings(DEFAULT, derandomize=True, database=None),
    "long": settings(DEFAULT, max_examples=1_000),
}
TIMES_LONGER = 10


def chosen(environment: dict[str, str]) -> str:
    """Return the name of the profile that these environment variables ask for."""
    return environment.get("HYPOTHESIS_PROFILE") or ("ci" if environment.get("CI") else "default")


def load() -> None:
    """Register the profiles and load the one that the environment asks for."""
    for name, profile in PROFILES.items():
        settings.register_profile(name, profile)
    settings.load_profile(chosen(dict(os.environ)))


def examples(number: int) -> int:
    """Return the number of examples of a property: `number`, or ten times as many in `long`."""
    return number * (TIMES_LONGER if settings.get_current_profile_name() == "long" else 1)
