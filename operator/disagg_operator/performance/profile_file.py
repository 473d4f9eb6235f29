"""The files of profiles, which `disagg profile` writes and `disagg plan` and `simulate` read."""

from __future__ import annotations

import json
from pathlib import Path

from disagg_operator.performance import origin
from disagg_operator.performance.origin import Origin
from disagg_operator.performance.profile import MEASURED, PROFILES, Profile, ProfileError, parse, to_text


def load(name: str) -> Profile:
    """Return a published profile by name, or one from a JSON file that `disagg profile` wrote.

    Raises ProfileError.
    """
    return load_with_origin(name)[0]


def load_with_origin(name: str) -> tuple[Profile, Origin | None]:
    """Return a profile with its origin, which published ones and those of release 0.1.0 lack.

    Raises ProfileError.
    """
    if name in PROFILES:
        return PROFILES[name], None
    path = Path(name)
    if not path.is_file():
        raise ProfileError(f"profile: {name!r} is neither a file nor one of {', '.join(sorted(PROFILES))}")
    try:
        text = path.read_text()
    except (ValueError, OSError) as error:
        raise ProfileError(f"{name}: {error}") from None
    found, raw = parse(name, text), json.loads(text)
    return found, origin.parse(name, raw[MEASURED]) if MEASURED in raw else None


def load_of(name: str, model: str, hardware: str = "", anyway: bool = False) -> Profile:
    """Return a profile, which must be of this model and hardware unless `anyway` is set.

    Raises ProfileError.
    """
    profile, of = load_with_origin(name)
    if of is not None and not anyway and (why := of.refusal(name, model, hardware)) is not None:
        raise ProfileError(f"{why}; measure that with `disagg profile`, or use it nevertheless with --any-profile")
    return profile


def save(profile: Profile, path: Path, of: Origin | None = None) -> None:
    """Write a profile and its origin to a JSON file, from which `load` reads it."""
    path.write_text(to_text(profile, origin.to_raw(of) if of is not None else None))
