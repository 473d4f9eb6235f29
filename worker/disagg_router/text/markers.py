"""PURE: The texts of special tokens within messages, which stay text.

Otherwise whoever writes a message could end it, and begin one of the assistant or the system.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# From the private use area: it stands in no template, and what messages have of it is not changed.
_CANDIDATES = ("\ue000", "\uf8ff", "\U000f0000", "\U0010fffd")


class Markers:
    """The texts of a tokenizer's special tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        # The longest first: one may begin with another.
        found = sorted({text for text in texts if len(text) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None

    def split(
        self, messages: Sequence[Mapping[str, Any]], render: Callable[[Sequence[Mapping[str, Any]]], str]
    ) -> list[str]:
        """Return the text that `render` makes of the messages, in pieces to be tokenized alone.

        There is one piece, unless a message contains the text of a special token: that is divided
        between two pieces then. Raises ValueError if that is not possible.
        """
        pattern = self._pattern
        texts = [value for m in messages for value in m.values() if isinstance(value, str)]
        if pattern is None or not any(map(pattern.search, texts)):
            return [render(messages)]
        wedge = next((c for c in _CANDIDATES if not any(c in text for text in texts)), None)
        if wedge is None:
            raise ValueError("it has the texts of special tokens beside characters that nobody uses")

        def divided(text: str) -> str:
            # Dividing one may leave another one, which overlaps with it.
            while (changed := pattern.sub(lambda found: found[0][0] + wedge + found[0][1:], text)) != text:
                text = changed
            return text

        apart = [{k: divided(v) if isinstance(v, str) else v for k, v in m.items()} for m in messages]
        return render(apart).split(wedge)
