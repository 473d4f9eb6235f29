"""PURE: The events of a request, from its first token to its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from disagg_wire import codes
from disagg_wire.spent_time import Spent


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One output token."""

    index: int
    """The position among the output tokens of the whole request, from 0."""
    token: int
    """The token's ID."""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The most likely alternatives: (token ID, logprob)."""
    cached_tokens: int | None = None
    """The number of prompt tokens that were found in the cache; set on the first token that an
    engine computes from a prompt.
    """
    spent: Spent | None = field(default=None, compare=False)
    """The time that the prompt took here; set on that token, if the engine tells it."""


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The last event of a request that succeeded."""

    finish_reason: str
    """`stop`, `length` or (prefill only) `prefilled`."""


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """The last event of a request that failed."""

    code: str
    message: str
    retryable: bool
    """Whether the same request may succeed on another worker."""


Event = TokenEvent | EndEvent | ErrorEvent


CANCELLED = ErrorEvent(codes.CANCELLED, "cancelled", retryable=False)


class EventSink(Protocol):
    """Receives the events of a request in order.

    The last one, and no other, is an EndEvent or an ErrorEvent. The call must not block.
    """

    def __call__(self, event: Event) -> None: ...
