"""PURE: The events of a request, from its first token to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from disagg_wire import codes


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One output token.

    `index` counts output tokens of the whole request from 0. `cached_tokens`: with the first token
    that an engine computed from a prompt, how many of the prompt's tokens it found in its cache.
    """

    index: int
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The last event of a request that ended well: `stop`, `length` or (prefill only) `prefilled`."""

    finish_reason: str


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """The last event of a request that failed.

    `retryable`: the same request may succeed on another worker.
    """

    code: str
    message: str
    retryable: bool


Event = TokenEvent | EndEvent | ErrorEvent


CANCELLED = ErrorEvent(codes.CANCELLED, "cancelled", retryable=False)


class EventSink(Protocol):
    """Receives a request's events in order; exactly one EndEvent or ErrorEvent, last.

    Must not block.
    """

    def __call__(self, event: Event) -> None: ...
