"""A record of what happened to a request over all its attempts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disagg_router.dispatch.stage_clock import StageClock
from disagg_router.errors import AttemptFailed, NoRoom
from disagg_router.tracing.attempt_record import AttemptRecord
from disagg_router.workers.worker_info import Worker
from disagg_wire import codes, spent_time
from disagg_wire.spent_time import Spent

SLOW_PREFILL = "slow_prefill"
# Errors that say nothing against workers: they are the client's, or of workers that are busy or go.
_BLAMELESS = (codes.INVALID_REQUEST, codes.PROMPT_TOO_LONG, codes.DRAINING, codes.NO_CAPACITY, SLOW_PREFILL)
# A request that waits for long may be refused more often; the last ones are remembered.
_MOST_ATTEMPTS = 32


@dataclass(slots=True)
class Trace:
    """A record of what happened to a request; it describes the last attempt unless a field says
    otherwise.

    Times are durations in seconds.
    """

    prefill: Worker | None = None
    """The worker that computed the prompt; None if decode did."""
    decode: Worker | None = None
    """The worker that generated the tokens; None if prefill answered alone."""
    path: str = ""
    """One of "remote", "local" and "prefill_only"."""
    reason: str = ""
    """Why its prompt was prefilled there, a value of the label `reason` of its series."""
    kv_bytes: int | None = 0
    """The bytes of KV that were moved; None if the engine does not know."""
    transfer_s: float | None = 0.0
    """The duration of the transfer; None if the engine does not know."""
    exposed_s: float | None = 0.0
    """The part of the transfer that was not hidden behind the computation of prefill; None if the
    engine does not know.
    """
    interface: str = ""
    """The network interface that the KV was moved over."""
    transport: str = ""
    """What moved the KV, one of disagg_wire.engines.TRANSPORTS; empty if it is not known."""
    evidence: str = ""
    """How that is known, one of disagg_wire.engines.EVIDENCE."""
    computed_s: float | None = None  # monotonic: when a worker sent the first token of the prompt
    moved_s: float | None = None  # monotonic: when decode had the KV
    spent: Spent | None = None
    """What the worker says of the time that the prompt took there."""
    cached_tokens: int | None = None
    """The tokens of the prompt that it found in its cache."""
    weakened: frozenset[str] = frozenset()
    """The promises that a failover has weakened (docs/protocol.md), over all attempts."""
    queue_s: float = 0.0  # waiting for room, over all attempts
    held_s: float = 0.0  # the part of it for which there were no workers of the model
    attempts: int = 0  # over all attempts; waiting for room does not count as one
    clock: StageClock = field(default_factory=StageClock)  # over all attempts
    past: deque[AttemptRecord] = field(default_factory=lambda: deque(maxlen=_MOST_ATTEMPTS))
    """The attempts that came to nothing."""
    broken: tuple[Worker | None, Worker | None] | None = None
    """The prefill and the decode worker of the first attempt that failed by no fault of the client,
    or that they had taken and did not begin in time; None if none did.
    """

    def begin(self, prefill: Worker | None, decode: Worker | None, path: str, reason: str) -> None:
        """Begin with another attempt."""
        self.prefill, self.decode, self.path, self.reason = prefill, decode, path, reason
        self.kv_bytes, self.transfer_s, self.exposed_s = 0, 0.0, 0.0
        self.interface, self.transport, self.evidence = "", "", ""
        self.computed_s = self.moved_s = self.spent = self.cached_tokens = None

    def computed(self, line: Mapping[str, Any]) -> None:
        """Note the event with the first token that a worker has computed from the prompt."""
        self.computed_s = time.monotonic()
        self.spent = spent_time.parse(line.get(spent_time.FIELD))
        cached = line.get("cached_tokens")
        self.cached_tokens = cached if isinstance(cached, int) else None

    def note_failure(self, failure: AttemptFailed | NoRoom) -> None:
        """Note that the attempt, if there is one, came to nothing."""
        if self.broken is None and failure.reason not in _BLAMELESS:
            self.broken = self.prefill, self.decode
        if (attempt := self.record(time.monotonic(), failure.reason)) is not None:
            self.past.append(attempt)

    def record(self, now_s: float, failure: str = "") -> AttemptRecord | None:
        """Return a record of the present attempt, or None if there is none."""
        began_s = self.clock.attempt_s
        if began_s is None:
            return None
        return AttemptRecord(
            self.attempts,
            began_s,
            now_s,
            failure,
            self.prefill.pod if self.prefill is not None else "",
            self.decode.pod if self.decode is not None else "",
            self.path,
            self.reason,
            self.computed_s,
            self.spent,
            self.cached_tokens,
            self.moved_s,
            self.kv_bytes,
            self.transfer_s,
            self.exposed_s,
            self.interface,
            self.transport,
            self.evidence,
        )
