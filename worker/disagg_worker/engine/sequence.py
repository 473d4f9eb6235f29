"""One request inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_worker.engine.api import EventSink, KvSender, SamplingParams
from disagg_worker.engine.block_pool import State


@dataclass(slots=True, eq=False)
class Sequence:
    """`computed`: how many of `tokens` have their KV in the cache. `hands_over`: prefill only, the KV goes to `sender` or is dropped."""

    key: int
    request_id: str
    tokens: list[int]
    prompt_tokens: int
    sampling: SamplingParams
    sink: EventSink
    hands_over: bool
    queued_at_s: float
    sender: KvSender | None = None
    blocks: list[int] = field(default_factory=list)
    state: State = State.FREE
    computed: int = 0
    cancelled: bool = False
    ended: bool = False
    release_asked: bool = False

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def releasable(self) -> bool:
        """Nobody needs the blocks any more."""
        return self.ended and (self.release_asked or self.sender is None)

    def finish_reason(self, max_model_len: int) -> str | None:
        """Why the request is over after its last token, None when it is not (also before its first token)."""
        if self.emitted < 1:
            return None
        if self.tokens[-1] in self.sampling.stop_token_ids and self.emitted > self.sampling.min_tokens:
            return "stop"
        if self.emitted >= self.sampling.max_new_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None
