"""The steps from a checked request to text, for each choice of the answer.

They are limits, sampling parameters, detokenization, stop strings and usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

from disagg_router.admission.asker import Asker
from disagg_router.admission.quotas import Quota
from disagg_router.dispatch.attempt import Finished
from disagg_router.dispatch.dispatcher import Dispatcher
from disagg_router.dispatch.request_state import RequestState, Token
from disagg_router.dispatch.trace import Trace
from disagg_router.errors import ApiError
from disagg_router.openai.answers import Piece
from disagg_router.openai.sampling import check_prompt, most_chars, sampling_of
from disagg_router.openai.schema import ChatRequest, CompletionRequest
from disagg_router.text.stop_strings import StopStrings
from disagg_router.text.tokenizer import Detokenizer, Text
from disagg_router.workers.catalogue import Model
from disagg_router.workers.worker_info import Worker
from disagg_wire.tenants import share_of

# For less, a choice does not wait for another: decode holds whole blocks, and few are soon there.
_SHARED_FROM_TOKENS = 64


class TokenSource(Protocol):
    """What the tokens of a choice come from."""

    def run(self, state: RequestState, trace: Trace, arrived_s: float) -> AsyncGenerator[Token | Finished]:
        """Yield the tokens in order, then Finished. Iterating raises ApiError and ModelReplaced."""


@dataclass(slots=True)
class Generation:
    """One choice of one answer. Times are monotonic, in seconds."""

    index: int
    """The position of the choice in the answer."""
    text: Text
    """The tokenizer of the model."""
    state: RequestState
    """The state of the request over all its attempts."""
    stops: list[str]
    """The stop strings."""
    leader: Generation | None = None
    """The first choice of the answer with the same prompt, if this is a further one."""
    quota: Quota | None = None
    """What the API key of the request may still do, if that counts its tokens."""
    trace: Trace = field(default_factory=Trace)
    """The record of what happened to the request."""
    started_s: float = field(default_factory=time.monotonic)
    """The time of the request's arrival."""
    first_s: float = 0.0
    """The time of the first token; 0 until it is out."""
    last_s: float = 0.0
    """The time of the last token so far; 0 until there is one."""
    second_s: float = 0.0
    """The time of the second token; 0 until it is out."""
    longest_gap_s: float = 0.0
    """The longest time between two tokens so far."""
    ended: bool = False
    """Whether a whole answer was given."""
    failed: bool = False
    """Whether the service failed to give one."""
    finish_reason: str = ""
    """Why the answer ended, if it is whole."""
    error: ApiError | None = None
    """With what it failed."""
    refused: bool = False
    """Whether none was given because the client has asked for what cannot be done."""
    tokens: int = 0
    """The number of tokens of the answer. `state.emitted` may be ahead of it: tokens that follow a
    stop string are not part of the answer.
    """
    is_in_place: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the KV of the prompt is where it is decoded, or will not be."""

    @property
    def shares_prompt(self) -> bool:
        return self.leader is not None

    source: TokenSource | None = None
    """What its tokens come from, if that is not the dispatcher: it goes on with an answer."""
    free_tokens: int = 0
    """The number of its first tokens that the API key has had before."""
    events: int = 0
    """The number of pieces so far that are events of a stream; counted if it has a source."""

    @property
    def shows_each(self) -> bool:
        """Whether each token is an event of a stream, even one without a text."""
        return self.state.sampling.get("logprobs") is not None

    def has_shown(self, events: int) -> bool:
        """Return whether there were so many events by now."""
        return self.events >= events

    async def pieces(self, dispatcher: Dispatcher) -> AsyncGenerator[Piece]:
        """Yield the answer as it comes. Raises ApiError.

        The choices of a prompt share its KV, which is computed and moved for the first one: the
        others begin when it is there.
        """
        if self.leader is not None and len(self.state.prompt) >= _SHARED_FROM_TOKENS:
            await self.leader.is_in_place.wait()
        try:
            async with contextlib.aclosing(self._pieces(dispatcher)) as pieces:
                async for piece in pieces:
                    # The first token comes from prefill, while the KV may be on its way.
                    if self.tokens > 1 or self.trace.path == "local":
                        self.is_in_place.set()
                    yield piece
        finally:
            self.is_in_place.set()

    async def _pieces(self, dispatcher: Dispatcher) -> AsyncGenerator[Piece]:
        detokenizer, stops = Detokenizer(self.text), StopStrings(self.stops)
        stop_ids = set(self.state.sampling["stop_token_ids"])
        tokens = (self.source or dispatcher).run(self.state, self.trace, self.started_s)
        async with contextlib.aclosing(tokens) as events:
            async for event in events:
                if isinstance(event, Finished):
                    self.ended = True
                    rest = stops.feed(detokenizer.flush()) + stops.flush()
                    self.finish_reason = "stop" if stops.stopped else event.reason
                    yield Piece(rest, finish_reason=self.finish_reason)
                    return
                self.tokens += 1
                self._timed(time.monotonic())
                if self.quota is not None and self.tokens > self.free_tokens:
                    self.quota.spend(1, self.last_s)
                text = "" if event.token in stop_ids else stops.feed(detokenizer.feed(event.token))
                if stops.stopped:
                    self.ended = self.state.over = True
                    self.finish_reason = "stop"
                    yield Piece(text, (event,), "stop")
                    return
                if self.source is not None:
                    self.events += bool(text) or self.shows_each
                yield Piece(text, (event,))

    def _timed(self, now_s: float) -> None:
        """Note the time of a token."""
        if self.tokens > 1:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
            self.second_s = self.second_s or now_s
        else:
            self.first_s = now_s
        self.last_s = now_s

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        return (self.last_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None

    def trace_json(self) -> dict[str, Any]:
        """Return the `disagg` object of the answer, which tells people and the demo what
        happened.
        """
        t = self.trace

        def who(worker: Worker | None) -> dict[str, str] | None:
            return None if worker is None else {"pod": worker.pod, "incarnation": worker.incarnation}

        return {
            "request_id": self.state.request_id,
            "prefill": who(t.prefill),
            "decode": who(t.decode),
            "path": t.path,
            "reason": t.reason,
            "kv_bytes": t.kv_bytes,
            "transfer_s": t.transfer_s,
            "exposed_s": t.exposed_s,
            "interface": t.interface,
            "transport": t.transport,
            "evidence": t.evidence,
            "ttft_s": round(self.ttft_s, 6),
            "tpot_s": None if self.tpot_s is None else round(self.tpot_s, 6),
            "queue_s": round(t.queue_s, 6),
            "attempts": t.attempts,
            "weakened": sorted(t.weakened),
        }


def plan(
    request: ChatRequest | CompletionRequest,
    text: Text,
    model: Model,
    max_attempts: int,
    quota: Quota,
    tenant: str,
    arrived_s: float,
) -> list[Generation]:
    """Return every choice that the request asks for, which arrived at monotonic `arrived_s`.

    Raises ApiError.
    """
    limit = most_chars(model)
    if isinstance(request, ChatRequest):
        prompts = [text.encode_chat([m.plain() for m in request.messages], limit)]
    else:
        prompts = [
            p if isinstance(p, list) else text.encode(p, special=True, most_chars=limit) for p in request.prompts()
        ]
    seed = secrets.randbits(63) if request.seed is None else request.seed % (1 << 64)
    roll = random.random()
    out: list[Generation] = []
    for prompt in prompts:
        leader: Generation | None = None
        allowed = check_prompt(prompt, request.wanted_tokens, request.default_tokens, model)
        for i in range(request.n or 1):
            sampling = sampling_of(request, model, allowed, (seed + i) % (1 << 64))
            state = RequestState(
                secrets.token_hex(16),
                model.identity,
                tuple(prompt),
                sampling,
                max_attempts,
                tenant,
                has_own_seed=request.seed is not None,
                roll=roll,
                asker=Asker(quota.key.priority, share_of(tenant)),
            )
            out.append(Generation(len(out), text, state, request.stops, leader, quota, started_s=arrived_s))
            leader = leader or out[-1]
    return out
