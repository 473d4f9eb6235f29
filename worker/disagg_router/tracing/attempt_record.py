"""PURE: The records from which the spans of a request are made when it is over.

All times are monotonic, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from disagg_wire.spent_time import Spent

# Of the marks of a StageClock, those that are no stages.
CHOOSE, FAILED = "choose", "failed"


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt on one choice of workers, or one refusal of theirs."""

    number: int
    began_s: float
    ended_s: float
    failure: str = ""
    """Why it failed, a word of docs/protocol.md; empty if it did not."""
    prefill: str = ""
    """The pod that computed the prompt; empty if decode did."""
    decode: str = ""
    """The pod that generated the tokens; empty if prefill answered alone."""
    path: str = ""
    reason: str = ""
    computed_s: float | None = None
    """The time at which the prompt was computed, as far as that is known."""
    spent: Spent | None = None
    """What the worker says of the time that this took there."""
    cached_tokens: int | None = None
    moved_s: float | None = None
    """The time at which decode had the KV."""
    kv_bytes: int | None = None
    transfer_s: float | None = None
    exposed_s: float | None = None
    interface: str = ""
    transport: str = ""
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class ChoiceRecord:
    """One choice of an answer."""

    started_s: float
    """The arrival of the request."""
    ended_s: float
    marks: Sequence[tuple[str, float]] = ()
    """The changes of its StageClock."""
    attempts: Sequence[AttemptRecord] = ()
    first_s: float | None = None
    """The time of the first token."""
    last_s: float | None = None
    """The time of the last one so far."""
    tokens: int = 0
