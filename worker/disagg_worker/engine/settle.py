"""The treatment of a step's results: tokens are emitted, and requests end, are handed over or go
on.
"""

from __future__ import annotations

import logging
import threading
import time

import torch

from disagg_protocol.events import CANCELLED, EndEvent, ErrorEvent, Event, TokenEvent
from disagg_wire import codes
from disagg_wire.spent_time import Spent
from disagg_worker.engine.queues import Queues
from disagg_worker.engine.sequence import Sequence
from disagg_worker.engine.steps import Outcome
from disagg_worker.engine.structured import GrammarError

log = logging.getLogger(__name__)
INTERNAL = ErrorEvent(codes.INTERNAL, "the engine failed on this request; see the worker's log", retryable=True)
_OUT_OF_MEMORY = ErrorEvent(
    codes.INTERNAL, "out of memory: the newest request of a batch is given up for the others", retryable=True
)
# Only this request fails, and others were computed: no worker is to blame.
_OFFENDER = ErrorEvent(
    codes.REQUEST_FAILED, "the engine failed on this request alone; see the worker's log", retryable=True
)
# Another worker may compute what is finite. This one is to blame if it did not for anybody.
_POISONED = ErrorEvent(codes.INTERNAL, "the model's logits are not finite", retryable=True)
_POISONED_ALONE = ErrorEvent(codes.REQUEST_FAILED, "the logits of this request alone are not finite", retryable=True)
_FINISHED = ErrorEvent(codes.FINISHED, "the first token ended the request", retryable=False)


def out_of_memory(error: Exception) -> bool:
    """Return whether a step failed because memory ran out."""
    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def failure(error: Exception, *, alone: bool) -> ErrorEvent:
    """Return the end of a request that a step lost, `alone` if others of the step were computed."""
    if out_of_memory(error):
        return _OUT_OF_MEMORY
    return _OFFENDER if alone else INTERNAL


class Settler:
    """Passes the results of steps on, on the engine's thread.

    `lock` guards the queues; no sink and no sender is called while it is held.
    """

    def __init__(self, lock: threading.Condition, queues: Queues, max_model_len: int) -> None:
        self._lock = lock
        self._queues = queues
        self._max_len = max_model_len
        self.generated_tokens = 0
        self.late_prompts = 0

    def over(self) -> list[tuple[Sequence, EndEvent | ErrorEvent]]:
        """Return the sequences that were cancelled or arrived from another worker with their last
        token, each with the event that ends it. The lock must be held.
        """
        over: list[tuple[Sequence, EndEvent | ErrorEvent]] = []
        over += [(s, CANCELLED) for s in (*self._queues.waiting, *self._queues.running) if s.cancelled]
        for s in self._queues.running:
            if not s.cancelled and (reason := s.finish_reason(self._max_len)) is not None:
                over.append((s, EndEvent(reason)))
        return over

    def settle(self, s: Sequence, outcome: Outcome, *, alone: bool = False) -> None:
        """Pass a sampled token on, and end, hand over or continue its request.

        `alone` says of a failure whether others of the step have tokens.
        """
        try:
            self._settle(s, outcome, alone=alone)
        except Exception:
            log.exception("request %s failed after its step", s.request_id)
            self.end(s, INTERNAL)

    def _settle(self, s: Sequence, outcome: Outcome, *, alone: bool) -> None:
        if isinstance(outcome, Exception):
            if isinstance(outcome, GrammarError):
                self.end(s, ErrorEvent(codes.INVALID_REQUEST, f"sampling.structured: {outcome}", retryable=False))
                return
            log.error("request %s failed", s.request_id, exc_info=outcome)
            if isinstance(outcome, ArithmeticError):
                self.end(s, _POISONED_ALONE if alone else _POISONED, poisoned=True)
            else:
                self.end(s, INTERNAL)
            return
        if s.waited_due_s is not None and time.monotonic() > s.waited_due_s:
            self.late_prompts += 1
        s.tokens.append(outcome.token)
        self.generated_tokens += 1
        told = () if s.told_cached else self._of_prompt(s)
        event = TokenEvent(s.emitted - 1, outcome.token, outcome.logprob, outcome.top_logprobs, *told)
        self._tell(s, event)
        reason = s.finish_reason(self._max_len)
        if reason is not None:
            if s.sender is not None:
                s.sender.abort(_FINISHED)
            self.end(s, EndEvent(reason))
        elif s.hands_over:
            if s.sender is not None:
                s.sender.commit(event)
            self.end(s, EndEvent("prefilled"))
        elif s in self._queues.prefilling:
            with self._lock:
                self._queues.start_decode(s)
        if s.grammar is not None and not s.ended:
            s.grammar.ask(s.tokens[s.prompt_tokens :])

    @staticmethod
    def _of_prompt(s: Sequence) -> tuple[int | None, Spent | None]:
        """Return what the first token that was computed from the prompt here says of it, once: the
        number of cached tokens, and the time that it took.
        """
        s.told_cached = True
        if s.begun_at_s is None:
            return s.cached_tokens, None
        return s.cached_tokens, Spent(s.begun_at_s - s.queued_at_s, time.monotonic() - s.begun_at_s)

    def end(self, s: Sequence, event: EndEvent | ErrorEvent, *, poisoned: bool = False) -> None:
        """End a sequence; this is its only way out of the engine (idempotent).

        If it is `poisoned`, other requests must not find the KV that it computed.
        """
        with self._lock:
            if s.ended:
                return
            s.ended = True
            self._queues.remove(s, poisoned=poisoned)
        self._tell(s, event)

    @staticmethod
    def _tell(s: Sequence, event: Event) -> None:
        """Call the sink, and the sender in case of an error.

        If one of them raises, its own request fails and the others go on.
        """
        try:
            if s.sender is not None and isinstance(event, ErrorEvent):
                s.sender.abort(event)
        except Exception:
            log.exception("the sender of request %s failed", s.request_id)
        try:
            s.sink(event)
        except Exception:
            log.exception("the sink of request %s failed", s.request_id)
            s.cancelled = True
