"""PURE: A request inside the engine."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from disagg_protocol.events import EventSink
from disagg_protocol.sampling_params import SamplingParams
from disagg_wire.tenants import share_of
from disagg_worker.engine.block_pool import Holding
from disagg_worker.engine.contract import KvSender
from disagg_worker.engine.token_counts import TokenCounts


class TokenMask(Protocol):
    """The tokens that a grammar lets follow."""

    @property
    def ready(self) -> bool:
        """Whether the mask that was asked for last is there, or the error that comes of it."""

    @property
    def quick(self) -> bool:
        """Whether the last mask came so soon that a step need not wait for the next one."""

    def ask(self, emitted: Many[int]) -> None:
        """Begin to compute the mask after `emitted`, which extends what was emitted before."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for the mask that was asked for last; return whether it is there."""

    def allowed(self, emitted: Many[int]) -> npt.NDArray[np.bool_]:
        """Return which tokens may follow `emitted`, [vocab]; calls come with ever more tokens."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request with its tokens, its blocks and its progress."""

    key: int
    """A number that rises with every request: the larger, the newer."""
    request_id: str
    tokens: list[int]
    """The prompt and the tokens emitted so far."""
    prompt_tokens: int
    """The number of tokens of the prompt."""
    sampling: SamplingParams
    sink: EventSink
    hands_over: bool
    """Whether it is only prefilled here; its KV then goes to `sender` or is dropped."""
    queued_at_s: float
    """The monotonic time of its arrival."""
    tenant: str = ""
    due_s: float | None = None
    """The time by which the first token should be out, on the clock of `queued_at_s`."""
    sender: KvSender | None = None
    names: list[bytes] = field(default_factory=list)
    """The names of its full blocks (prefix_hash), as far as known."""
    holding: Holding | None = None
    """Its blocks; None while it waits for them."""
    computed: int = 0
    """The number of `tokens` whose KV is in the cache."""
    registered: int = 0
    """The number of its blocks that others can find."""
    reported: int = 0
    """The number of its blocks that were reported to the sender with all layers."""
    reported_layers: int = 0
    """The number of layers of the next blocks that were reported to the sender."""
    cached_tokens: int | None = None
    """The tokens of the prompt that were found in the cache when it first started; None before."""
    begun_at_s: float | None = None
    """The monotonic time at which the computation of its prompt began; None before."""
    is_rest: bool = False
    """Whether what is computed of the prompt is the rest that is computed here by choice."""
    told_cached: bool = False
    """Whether the sink has been told `cached_tokens`."""
    grammar: TokenMask | None = None
    counts: TokenCounts = field(default_factory=TokenCounts)
    """What the penalties have counted of `tokens`."""
    cancelled: bool = False
    ended: bool = False
    release_asked: bool = False
    """Whether the sender has released the blocks."""

    @property
    def share(self) -> str:
        """The name under which it shares the work with others: that of its API key."""
        return share_of(self.tenant)

    @property
    def masked(self) -> bool:
        """Whether the mask of the next token is there, if one is needed."""
        return self.grammar is None or self.grammar.ready

    @property
    def may_step(self) -> bool:
        """Whether the mask will be there in time if the next token is computed now."""
        return self.grammar is None or self.grammar.quick or self.grammar.ready

    @property
    def blocks(self) -> list[int]:
        return self.holding.blocks if self.holding is not None else []

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def waited_due_s(self) -> float | None:
        """The due time while the first token is not out.

        After that nothing is due: the request only has to go on.
        """
        return None if self.emitted else self.due_s

    @property
    def releasable(self) -> bool:
        """Whether nobody needs the blocks any more."""
        return self.ended and (self.release_asked or self.sender is None)

    def most_tokens(self, max_model_len: int) -> int:
        """Return the number of tokens that the sequence can grow to."""
        return min(self.prompt_tokens + self.sampling.max_new_tokens, max_model_len)

    def finish_reason(self, max_model_len: int) -> str | None:
        """Return the reason for which the last token ends the request, or None if it does not.

        It is None before the first token, too.
        """
        if self.emitted < 1:
            return None
        if self.tokens[-1] in self.sampling.stop_token_ids and self.emitted > self.sampling.min_tokens:
            return "stop"
        if self.emitted >= self.sampling.max_new_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None
