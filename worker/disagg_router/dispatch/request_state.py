"""PURE: The state of one generation request over all its attempts.

The router holds the tokens of the request, so the death of any worker is survivable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disagg_router.admission.asker import NOBODY, Asker
from disagg_router.workers.worker_info import Identity
from disagg_wire.protocol import FEATURE_ADAPTER, FEATURE_RESUME

# A reference, and an integer.
_TOKEN_BYTES = 8 + 32


@dataclass(frozen=True, slots=True)
class Token:
    """One output token. `logprob` and `top_logprobs` are set only where the client asked for
    them.
    """

    index: int
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class ProtocolViolation(Exception):
    """Raised when a worker sends something that the protocol does not allow."""


def _logprob(value: Any) -> float:
    """Return the value as a number. Raises ValueError if it is no logarithm of a probability."""
    logprob = float(value)
    if math.isnan(logprob) or logprob == math.inf:
        raise ValueError("logprob is no number")
    # JSON has no infinity: the logarithm of a forbidden token is sent as vLLM sends it.
    return max(logprob, -9999.0)


@dataclass(slots=True)
class RequestState:
    """The tokens of a request: they come in from two legs, in any order, and go out once each,
    without a gap.

    Where prefill sends the first token, it and decode's second one come over two connections and
    may overtake each other; a token that is early waits.
    """

    request_id: str
    """The name of the request on workers and in logs."""
    identity: Identity
    """What the prompt was tokenized for; all attempts are with workers that have it."""
    prompt: tuple[int, ...]
    """The token ids of the prompt."""
    sampling: Mapping[str, Any]
    """The sampling parameters as docs/protocol.md has them."""
    max_attempts: int
    """The number of failed attempts after which the request fails."""
    tenant: str = ""
    """The scope within which cached KV is shared."""
    has_own_seed: bool = False
    """Whether the seed is the client's and not one that the router has drawn."""
    roll: float = 1.0
    """A number from 0 to 1 that says whether a new revision serves it while one is tried."""
    asker: Asker = NOBODY
    """Who asks: the line in which it waits for room."""
    emitted: list[int] = field(default_factory=list)
    """The token ids that went out, over all attempts."""
    epoch: int = 0
    """The number of the attempt, from 0."""
    failures: int = 0
    """The number of attempts that have failed."""
    resume: Mapping[str, Any] | None = None
    """How workers keep its stream, as docs/protocol.md has it; None if the client cannot resume
    it.
    """
    over: bool = False
    """Whether no more tokens are needed, although workers may make more."""
    shown: bool = False
    """Whether the client has got a part of the answer, which other weights must not continue."""
    # How many tokens of the prompt the worker of the first attempt that reported it found in its
    # cache.
    cached_tokens: int = 0
    _early: dict[int, Token] = field(default_factory=dict)
    _ended: str | None = None

    @property
    def max_new_tokens(self) -> int:
        return int(self.sampling["max_new_tokens"])

    @property
    def single_token(self) -> bool:
        """Whether only one more token is wanted, so that prefill alone can answer."""
        return self.max_new_tokens - len(self.emitted) == 1

    @property
    def size_bytes(self) -> int:
        """About how much memory the request needs while it waits."""
        return _TOKEN_BYTES * (len(self.prompt) + len(self.emitted))

    @property
    def resumes_format(self) -> bool:
        """Whether a next attempt continues an output that has to match a format."""
        return bool(self.emitted) and self.sampling.get("structured") is not None

    @property
    def needs_no_more(self) -> bool:
        """Whether what workers make is of no use once nobody reads it: also for a client that has
        got nothing, and may begin anew.
        """
        return self.over or not self.shown

    def body(self, deadline_s: float) -> dict[str, Any]:
        """Return the body that both legs of this attempt are sent.

        Tokens that were emitted by earlier attempts are part of the prompt. Only workers that list
        the adapter are sent its name.
        """
        named: dict[str, Any] = {FEATURE_ADAPTER: self.identity.adapter} if self.identity.adapter else {}
        if self.resume is not None:
            cached = {"cached_tokens": self.cached_tokens} if self.emitted else {}
            named[FEATURE_RESUME] = dict(self.resume) | cached
        return named | {
            "request_id": self.request_id,
            "epoch": self.epoch,
            "tokens": [*self.prompt, *self.emitted],
            "prompt_tokens": len(self.prompt),
            "sampling": dict(self.sampling),
            "tenant": self.tenant,
            "deadline_s": deadline_s,
        }

    def next_attempt(self) -> None:
        """Forget what the last attempt left unfinished."""
        self.epoch += 1
        self._early.clear()
        self._ended = None

    def failed(self) -> bool:
        """Count a failed attempt, and return whether another is allowed."""
        self.failures += 1
        return self.failures < self.max_attempts

    def token(self, line: Mapping[str, Any]) -> list[Token]:
        """Take a worker's token event, and return the tokens that are now in order.

        Raises ProtocolViolation.
        """
        try:
            index, token = int(line["index"]), int(line["token"])
            top = tuple((int(t), _logprob(p)) for t, p in line.get("top_logprobs", ()))
            logprob = None if line.get("logprob") is None else _logprob(line["logprob"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolViolation(f"garbled token event: {error}") from None
        if not all(0 <= t < 1 << 31 for t in (token, *(t for t, _ in top))):
            raise ProtocolViolation(f"token {token} is no token id")
        if not len(self.emitted) <= index < self.max_new_tokens or index in self._early:
            raise ProtocolViolation(f"token {index} when {len(self.emitted)} are out")
        if not self.emitted and index == 0:
            cached = line.get("cached_tokens", 0)
            if isinstance(cached, bool) or not isinstance(cached, int) or not 0 <= cached <= len(self.prompt):
                raise ProtocolViolation(f"cached_tokens {cached!r}")
            self.cached_tokens = cached
        self._early[index] = Token(index, token, logprob, top)
        out = []
        while (ready := self._early.pop(len(self.emitted), None)) is not None:
            self.emitted.append(ready.token)
            out.append(ready)
        return out

    def end(self, reason: str) -> None:
        """Note that a leg has reported the end of the request. Raises ProtocolViolation."""
        if reason not in ("stop", "length"):
            raise ProtocolViolation(f"finish_reason {reason!r}")
        self._ended = reason

    @property
    def complete(self) -> str | None:
        """The finish reason if the tokens that are out end the request by themselves, else None.

        This holds whatever became of the workers. When the first token is also the last, decode
        sees this as a broken transfer, and may report it before prefill's `end` arrives.
        """
        if (
            self.emitted
            and len(self.emitted) > self.sampling.get("min_tokens", 0)
            and self.emitted[-1] in self.sampling["stop_token_ids"]
        ):
            return "stop"
        return "length" if len(self.emitted) >= self.max_new_tokens else None

    @property
    def finished(self) -> str | None:
        """The finish reason once a worker has reported it and every token is out, else None."""
        return self._ended if self._ended is not None and not self._early and self.emitted else None
