"""PURE: The JSON of a request's body, bounded before it becomes objects.

A body of a few MiB can become a hundred times as much memory: an object that has almost nothing in
it takes 64 bytes and more. What is counted here is outside of strings, so that a long text costs
nothing but its own length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from disagg_router.errors import ApiError
from disagg_wire.protocol import MAX_TOKENS

# The most values in a list of tokens, and something for all other fields.
MAX_VALUES = MAX_TOKENS + (1 << 16)
# Names of fields, over all objects. The largest of the known fields is a schema of 65,536
# characters, which has fewer.
MAX_NAMES = 1 << 15
# Objects and lists, over all levels.
MAX_CONTAINERS = 1 << 16
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_PIECE = 1 << 16


def loads(raw: bytes) -> Any:
    """Return the content of the body.

    Raises ApiError 400, also for half of a surrogate pair, which Python's JSON parser accepts and
    nothing can encode; and ApiError 413 for too many values.
    """
    try:
        # With bytes, the parser would also take other encodings, and halves of surrogate pairs.
        text = raw.decode("utf-8-sig")
        _check_counts(text)
        content = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None


def _outside_of_strings(text: str) -> Iterator[str]:
    """Yield a JSON text in pieces, without what stands between quotation marks."""
    bare, inside = text.replace("\\\\", "").replace('\\"', ""), 0
    # Not in one go: a body may be made of nothing but short strings.
    for at in range(0, len(bare), _PIECE):
        parts = bare[at : at + _PIECE].split('"')
        yield "".join(parts[inside::2])
        inside = (inside + len(parts) - 1) % 2


def _over(pieces: Iterable[str]) -> str:
    """Return what there is too much of in a text, or ""."""
    values = names = containers = 0
    for text in pieces:
        values += text.count(",")
        names += text.count(":")
        containers += text.count("{") + text.count("[")
    if values >= MAX_VALUES:
        return f"over {MAX_VALUES} values"
    if names > MAX_NAMES:
        return f"over {MAX_NAMES} fields"
    return f"over {MAX_CONTAINERS} objects and lists" if containers > MAX_CONTAINERS else ""


def _check_counts(text: str) -> None:
    # Nearly every body passes without a look at where its strings are.
    if _over((text,)) and (what := _over(_outside_of_strings(text))):
        raise ApiError(413, f"the body has {what}", code="body_too_large")
