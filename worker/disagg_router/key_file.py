"""PURE: The file of API keys: a list of keys, or JSON that says what each of them may do.

The plain form is keys that are separated by white space. A file that begins with `{` is JSON:
`{"keys": [{"key": "...", "limits": {"requestsPerMinute": 60}, "priority": 1}]}`. What is wrong is
named by its path; no message contains a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

MAX_KEYS = 10_000
_MOST = 1_000_000_000
_FIELD_NAME = re.compile(r"[A-Za-z]{1,32}")


class KeyFileError(Exception):
    """Raised when the file cannot be used; the message names the place."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=to_camel)


class KeyLimits(_Part):
    """What one key may do at each router; None is without a limit."""

    requests_per_minute: int | None = Field(None, ge=1, le=_MOST)
    tokens_per_minute: int | None = Field(None, ge=1, le=_MOST)
    concurrency: int | None = Field(None, ge=1, le=_MOST)


class ApiKey(_Part):
    """One API key. Where requests wait, those of a key with a higher priority go first."""

    key: str = Field(pattern=r"^\S{1,4096}$", repr=False)
    limits: KeyLimits = KeyLimits.model_validate({})
    priority: int = Field(0, ge=-100, le=100)


class _KeyFile(_Part):
    keys: list[ApiKey] = Field(min_length=1, max_length=MAX_KEYS)


ANYBODY = ApiKey.model_construct(key="")
"""Whoever asks where no key is required."""


def parse(text: str) -> tuple[ApiKey, ...]:
    """Return the keys of a file. Raises KeyFileError."""
    found = _listed(text) if text.lstrip().startswith("{") else _plain(text)
    seen: dict[str, int] = {}
    for i, entry in enumerate(found):
        if (first := seen.setdefault(entry.key, i)) != i:
            raise KeyFileError(f"keys[{i}].key: is that of keys[{first}]")
    return found


def _plain(text: str) -> tuple[ApiKey, ...]:
    keys = dict.fromkeys(text.split())
    if not keys:
        raise KeyFileError("holds no key")
    if len(keys) > MAX_KEYS:
        raise KeyFileError(f"holds over {MAX_KEYS} keys")
    return tuple(ApiKey.model_construct(key=key) for key in keys)


def _listed(text: str) -> tuple[ApiKey, ...]:
    try:
        content = json.loads(text)
    except RecursionError:
        raise KeyFileError("is no JSON of keys: too deep") from None
    except ValueError as error:
        where = f", line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise KeyFileError(f"begins with {{ and is no JSON{where}") from None
    try:
        return tuple(_KeyFile.model_validate(content).keys)
    except ValidationError as error:
        raise KeyFileError("; ".join(_problem(e["loc"], e["type"], e["msg"]) for e in error.errors()[:8])) from None


def _problem(place: Sequence[Any], kind: str, message: str) -> str:
    path = ""
    for part in place:
        # What is no name of a field may be a key that was written in the wrong place.
        named = part if isinstance(part, int) or _FIELD_NAME.fullmatch(part) else "..."
        path += f"[{named}]" if isinstance(named, int) else f".{named}" if path else named
    said = {"extra_forbidden": "is no field", "string_pattern_mismatch": "must be a text without white space"}
    return f"{path}: {said.get(kind, message)}"
