"""PURE: The tokens of a sequence, counted as they come.

The penalties need them for every token. Counted anew each time, those of a long prompt would cost
more than the step of the network, and everybody in the batch would wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_FIRST_ROOM = 64


class _Counts:
    """The different tokens of a growing list, each with its number."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._tokens = np.zeros(_FIRST_ROOM, dtype=np.int64)
        self._numbers = np.zeros(_FIRST_ROOM, dtype=np.int64)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        return self._tokens[: len(self._places)]

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        return self._numbers[: len(self._places)]

    def add(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._tokens):
                self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
                self._numbers = np.concatenate((self._numbers, np.zeros_like(self._numbers)))
            self._tokens[place] = token
            self._numbers[place] += 1


class TokenCounts:
    """The counts of one sequence, to which tokens are only ever added."""

    def __init__(self) -> None:
        self._all, self._output = _Counts(), _Counts()
        self._seen = self._emitted = 0

    def seen(self, tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the different tokens of a sequence, of the prompt and the output."""
        self._all.add(tokens[self._seen :])
        self._seen = len(tokens)
        return self._all.tokens

    def output(self, tokens: Sequence[int], prompt_tokens: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the different tokens of the output, and how often each is there."""
        self._output.add(tokens[prompt_tokens + self._emitted :])
        self._emitted = len(tokens) - prompt_tokens
        return self._output.tokens, self._output.numbers
