"""PURE: A step that fails, repeated until the request that is to blame is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


@dataclass(slots=True)
class Isolated(Generic[ItemT, OutcomeT]):
    """The outcome of a step."""

    done: list[ItemT] = field(default_factory=list)
    """The items that were computed."""
    outcomes: list[OutcomeT] = field(default_factory=list)
    lost: list[tuple[ItemT, Exception]] = field(default_factory=list)
    """The items that are given up, each with the error of the last step that it was in."""


def isolated(
    items: Sequence[ItemT],
    compute: Callable[[list[ItemT]], list[OutcomeT]],
    newest: Callable[[list[ItemT]], ItemT],
    out_of_memory: Callable[[Exception], bool],
) -> Isolated[ItemT, OutcomeT]:
    """Compute items together, and give up as few of them as possible.

    If memory runs out, the newest one goes, and the others are computed again. After any other
    error they are computed in halves: of n items with one offender that takes about 2 * log2(n)
    steps, and fewer than 2 * n if all of them fail.
    """
    found: Isolated[ItemT, OutcomeT] = Isolated()
    parts = [list(items)]
    while parts:
        part = parts.pop()
        try:
            found.outcomes += compute(part)
            found.done += part
        except Exception as error:
            if len(part) == 1:
                found.lost.append((part[0], error))
            elif out_of_memory(error):
                last = newest(part)
                found.lost.append((last, error))
                parts.append([item for item in part if item is not last])
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
    return found
