"""The files of profiles, which `disagg profile` writes and `disagg plan` and `simulate` read."""

from __future__ import annotations

from pathlib import Path

from disagg_operator.performance.profile import PROFILES, Profile, ProfileError, parse, to_text


def load(name: str) -> Profile:
    """Return a published profile by name, or one from a JSON file that `disagg profile` wrote.

    Raises ProfileError.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if not path.is_file():
        raise ProfileError(f"profile: {name!r} is neither a file nor one of {', '.join(sorted(PROFILES))}")
    try:
        text = path.read_text()
    except (ValueError, OSError) as error:
        raise ProfileError(f"{name}: {error}") from None
    return parse(name, text)


def save(profile: Profile, path: Path) -> None:
    """Write a profile to a JSON file, from which `load` reads it."""
    path.write_text(to_text(profile))
