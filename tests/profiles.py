"""Hypothesis profiles. None has deadlines: a test must not fail because the machine is busy.

`default` is what a developer runs, `ci` takes the same examples in every run of the same code, `long` searches ten times as far.
HYPOTHESIS_PROFILE names the one to use; without it that is `ci` where CI runs, else `default`. Pytest's --hypothesis-profile goes
before both. A test that states its own number of examples gives it to `examples`, so that `long` multiplies it, too.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# From Hypothesis's own default by name: where CI runs, another profile is loaded as soon as Hypothesis is imported.
DEFAULT = settings(settings.get_profile("default"), deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
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
    """Return how many examples a property takes that needs `number` in a usual run: ten times as many in the profile `long`."""
    return number * (TIMES_LONGER if settings.get_current_profile_name() == "long" else 1)
