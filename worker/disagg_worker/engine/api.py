"""What the engine offers to the server and to the KV transfer: values, callbacks and errors. Holds no torch.

Threads: every method of an engine may be called from any thread. Callbacks run on the engine's own thread and must not block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Structured:
    """What the output must match. kind: json_schema, regex, grammar (Lark, as llguidance reads it), choice (value: a JSON list)."""

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to turn logits into a token. `seed` is always set: a token is a pure function of (logits, these, position)."""

    seed: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # number of alternatives to report, None: report nothing
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    structured: Structured | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One output token. `index` counts output tokens of the whole request from 0. `cached_tokens`: with the first token that an engine
    computed from a prompt, how many of the prompt's tokens it found in its cache."""

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
    """The last event of a request that failed. `retryable`: the same request may succeed on another worker."""

    code: str
    message: str
    retryable: bool


Event = TokenEvent | EndEvent | ErrorEvent


class EventSink(Protocol):
    """Receives a request's events in order; exactly one EndEvent or ErrorEvent, last. Must not block."""

    def __call__(self, event: Event) -> None: ...


class KvSender(Protocol):
    """The sending half of one transfer, driven by the prefill engine. Must not block; the blocks stay leased until
    `PrefillHandle.release` is called."""

    def layer_ready(self, layer: int, first_block: int, blocks: Sequence[memoryview]) -> None:
        """The KV of `layer` is final in these blocks of the sequence (`first_block` counts the sequence's blocks from 0).

        Each memoryview is the contiguous bytes `[k, v][kv_head][token][head_dim]` of one block and layer, zero-copy.
        Called once per (layer, block), those found in the prefix cache included; a block that a chunk only part fills is reported when a
        later chunk (or the last) completes it.
        """

    def commit(self, first_token: TokenEvent) -> None:
        """Every layer was reported and this is the token sampled from the last position."""

    def abort(self, error: ErrorEvent) -> None:
        """The computation failed or was cancelled: tell the peer, send nothing more."""


class PrefillHandle(Protocol):
    """A submitted prefill."""

    def cancel(self) -> None:
        """Stop computing (idempotent). The sink gets an ErrorEvent `cancelled` unless it already ended."""

    def release(self) -> None:
        """Give the blocks back (idempotent). The sender calls it when the peer has acknowledged, or failed."""


class Reservation(Protocol):
    """Blocks that a decode worker holds for KV to come."""

    @property
    def n_blocks(self) -> int:
        """How many blocks the announced tokens need (the growth reserve is not counted)."""

    def layer_view(self, layer: int, block: int) -> memoryview:
        """Writable bytes `[k, v][kv_head][token][head_dim]` of one layer of the sequence's `block`-th block."""

    def release(self) -> None:
        """Give the blocks back (idempotent; does nothing once `Engine.decode` took them)."""


class DecodeHandle(Protocol):
    """A running sequence."""

    def cancel(self) -> None:
        """Stop and free (idempotent). The sink gets an ErrorEvent `cancelled` unless it already ended."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The shape of the cache; equal on both ends of a transfer (see `compat`)."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size_tokens: int
    dtype: str
    itemsize_bytes: int

    @property
    def layer_block_bytes(self) -> int:
        return 2 * self.kv_heads * self.block_size_tokens * self.head_dim * self.itemsize_bytes

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.itemsize_bytes


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model, as the protocol's `info` reports it. `digest` covers config and weights."""

    name: str
    digest: str
    architecture: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


@dataclass(frozen=True, slots=True)
class DecodeRoom:
    """What one or several decode workers can still take: KV tokens that are promised to nobody, and sequences. `step_s`: how long a decode
    step took lately, 0: there was none."""

    free_tokens: int
    total_tokens: int
    free_seats: int
    total_seats: int
    step_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot for `info` and metrics. free + used + leased = total blocks; free ones may have cached content.

    room: for sequences to decode. prefill_limit_tokens: what a prefill batch may hold now, of prefill_most_tokens by the settings.
    prompt_tokens_total: computed, so without the cached ones. step_seconds_total: of steps, `forward` in the network, `rest` beside it.
    work_total: what was in the batches and steps, by name (disagg_worker.engine.steps.Work).
    late_prompts_total: whose first token came after it was due.
    """

    waiting_requests: int
    waiting_tokens: int
    running_requests: int
    blocks_total: int
    blocks_free: int
    blocks_used: int
    blocks_leased: int
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    steps_total: dict[str, int] = field(default_factory=dict)
    cached_tokens_total: int = 0
    preemptions_total: int = 0
    host_cache_bytes: int = 0
    step_seconds_total: dict[str, float] = field(default_factory=dict)
    work_total: dict[str, float] = field(default_factory=dict)
    room: DecodeRoom = DecodeRoom(0, 0, 0, 0, 0.0)
    prefill_limit_tokens: int = 0
    prefill_most_tokens: int = 0
    late_prompts_total: int = 0


class EngineError(Exception):
    """Base of what a caller can act on.

    EngineError
    +-- NoCapacity    no blocks or no place now; the same call may succeed later
    +-- InvalidInput  the request can never succeed here; the message names the field
    +-- ModelError    the model cannot be loaded; the message names the file, field or tensor
    """


class NoCapacity(EngineError):
    """No room now."""


class InvalidInput(EngineError):
    """The request itself is wrong."""


class ModelError(EngineError):
    """The model can't be loaded."""


class Engine(Protocol):
    """The inference engine of one worker process. Requests of two tenants never share cached KV.

    `due_s`: time.monotonic() by which the request's first token should be out, None: at no certain time. It only orders what waits
    (deadlines); nothing is given up for being late, and it means nothing once `tokens` has emitted ones.
    """

    model: ModelInfo
    layout: KvLayout

    def prefill(
        self,
        request_id: str,
        tokens: Sequence[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        sender: KvSender | None,
        tenant: str = "",
        due_s: float | None = None,
    ) -> PrefillHandle:
        """Queue a prefill of `tokens` (prompt, then emitted ones from `prompt_tokens` on). The sink gets one TokenEvent and an
        EndEvent (`prefilled`, or `stop`/`length` when that token ends the request; then the sender is aborted with code `finished`).

        Raises NoCapacity (queue full) or InvalidInput.
        """

    def reserve(self, request_id: str, tokens: int, max_total_tokens: int) -> Reservation:
        """Hold blocks for `tokens` plus a growth reserve; `decode` may then emit up to `max_total_tokens` in all.

        Raises NoCapacity or InvalidInput (would never fit)."""

    def decode(
        self,
        reservation: Reservation,
        tokens: Sequence[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        tenant: str = "",
    ) -> DecodeHandle:
        """Join the continuous batch. The KV of all `tokens` but the last is in the reservation; the last one is the first token,
        sampled by prefill. The sink gets the tokens after it. Takes ownership of the reservation."""

    def generate(
        self,
        request_id: str,
        tokens: Sequence[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        tenant: str = "",
        due_s: float | None = None,
    ) -> DecodeHandle:
        """Prefill and decode here (role `both`, and the fallback of the dual path). The sink gets every new token.

        Raises NoCapacity or InvalidInput.
        """

    def prepare(self, sampling: SamplingParams) -> None:
        """Compile what `sampling` needs compiled; may take a second. Raises InvalidInput."""

    def limit_prefill(self, room: DecodeRoom) -> None:
        """What decode has left elsewhere, for what is prefilled here: batches shrink while it has little (prefill_limit)."""

    def load(self) -> Load: ...

    def alive(self) -> bool:
        """The engine's loop runs and has made progress lately (or is idle)."""

    def stop(self, timeout_s: float) -> None:
        """End the loop; whatever still runs gets an ErrorEvent `draining`."""
