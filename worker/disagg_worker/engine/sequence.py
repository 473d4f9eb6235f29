"""One request inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_worker.engine.block_pool import Holding
from disagg_worker.engine.contract import KvSender
from disagg_worker.engine.structured import GrammarState
from disagg_worker.values.events import EventSink
from disagg_worker.values.sampling import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """`key` rises with every request: the larger, the newer.

    `hands_over`: prefill only, the KV goes to `sender` or is dropped.

    computed: how many of `tokens` have their KV in the cache. names: of its full blocks
    (prefix_hash), as far as known. registered, reported: how many of its blocks can be found by
    others, and were reported to the sender whole; reported_layers: how many layers of the next ones
    were. cached_tokens: how much of the prompt was found in the cache at the first start here, None
    before; told_cached: the sink knows. due_s: when the first token should be out, on the clock of
    `queued_at_s`.
    """

    key: int
    request_id: str
    tokens: list[int]
    prompt_tokens: int
    sampling: SamplingParams
    sink: EventSink
    hands_over: bool
    queued_at_s: float
    tenant: str = ""
    due_s: float | None = None
    sender: KvSender | None = None
    names: list[bytes] = field(default_factory=list)
    holding: Holding | None = None
    computed: int = 0
    registered: int = 0
    reported: int = 0
    reported_layers: int = 0
    cached_tokens: int | None = None
    told_cached: bool = False
    grammar: GrammarState | None = None
    cancelled: bool = False
    ended: bool = False
    release_asked: bool = False

    @property
    def blocks(self) -> list[int]:
        return self.holding.blocks if self.holding is not None else []

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def waited_due_s(self) -> float | None:
        """The due while its first token is not out.

        After that nothing is due, it only has to go on.
        """
        return None if self.emitted else self.due_s

    @property
    def releasable(self) -> bool:
        """Nobody needs the blocks any more."""
        return self.ended and (self.release_asked or self.sender is None)

    def most_tokens(self, max_model_len: int) -> int:
        """How long it can get."""
        return min(self.prompt_tokens + self.sampling.max_new_tokens, max_model_len)

    def finish_reason(self, max_model_len: int) -> str | None:
        """Why the request is over after its last token, None when it is not (also before its first
        token).
        """
        if self.emitted < 1:
            return None
        if self.tokens[-1] in self.sampling.stop_token_ids and self.emitted > self.sampling.min_tokens:
            return "stop"
        if self.emitted >= self.sampling.max_new_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None
