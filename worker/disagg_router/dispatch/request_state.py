"""PURE: one generation request over all its attempts.

The router holds its tokens, so any worker's death is survivable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Token:
    """One output token, in order. `logprob` only where asked for."""

    index: int
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class ProtocolViolation(Exception):
    """A worker sent what it must not."""


def _logprob(value: Any) -> float:
    """Raises ValueError for what is no logarithm of a probability."""
    logprob = float(value)
    if math.isnan(logprob) or logprob == math.inf:
        raise ValueError("logprob is no number")
    # JSON has no infinity: a forbidden token's logprob is sent as vLLM sends it.
    return max(logprob, -9999.0)


@dataclass(slots=True)
class RequestState:
    """Tokens in, in any order and from two legs; tokens out once each, without a gap.

    Prefill's first token and decode's second come over two connections and may overtake each other:
    later ones wait.
    """

    request_id: str
    digest: str
    prompt: tuple[int, ...]
    sampling: Mapping[str, Any]
    max_attempts: int
    tenant: str = ""
    emitted: list[int] = field(default_factory=list)
    epoch: int = 0
    failures: int = 0
    # How much of the prompt the worker of the first attempt that said so found in its cache.
    cached_tokens: int = 0
    _early: dict[int, Token] = field(default_factory=dict)
    _ended: str | None = None

    @property
    def max_new_tokens(self) -> int:
        return int(self.sampling["max_new_tokens"])

    @property
    def single_token(self) -> bool:
        """Only one token is wanted (still): prefill alone can answer."""
        return self.max_new_tokens - len(self.emitted) == 1

    def body(self, deadline_s: float) -> dict[str, Any]:
        """What both legs of this attempt are sent; what was emitted is a part of the prompt now."""
        return {
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
        """Count a failed attempt; True while another is allowed."""
        self.failures += 1
        return self.failures < self.max_attempts

    def token(self, line: Mapping[str, Any]) -> list[Token]:
        """A worker's token event -> the tokens that are now in order. Raises ProtocolViolation."""
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
        """A leg said that the request is over."""
        if reason not in ("stop", "length"):
            raise ProtocolViolation(f"finish_reason {reason!r}")
        self._ended = reason

    @property
    def complete(self) -> str | None:
        """The finish reason when the tokens that are out end the request by themselves, whatever
        became of the workers: when the first token is the last, decode learns it as a broken
        transfer, and may say so before prefill's `end` is here.
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
        """The finish reason once a worker has said it and every token is out."""
        return self._ended if self._ended is not None and not self._early and self.emitted else None
