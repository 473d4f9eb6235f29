"""What the engine offers to the server and to the KV transfer: values, callbacks and errors.

Holds no torch.

Threads: every method of an engine may be called from any thread. Callbacks run on the engine's own
thread and must not block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from disagg_wire.room import Room
from disagg_worker.values.events import ErrorEvent, EventSink, TokenEvent
from disagg_worker.values.layouts import KvLayout, ModelInfo
from disagg_worker.values.load import Load
from disagg_worker.values.sampling import SamplingParams


class KvSender(Protocol):
    """The sending half of one transfer, driven by the prefill engine.

    Must not block; the blocks stay leased until `PrefillHandle.release` is called.
    """

    def layer_ready(self, layer: int, first_block: int, blocks: Sequence[memoryview]) -> None:
        """The KV of `layer` is final in these blocks of the sequence (`first_block` counts the
        sequence's blocks from 0).

        Each memoryview is the contiguous bytes `[k, v][kv_head][token][head_dim]` of one block and
        layer, zero-copy. Called once per (layer, block), those found in the prefix cache included;
        a block that a chunk only part fills is reported when a later chunk (or the last) completes
        it.
        """

    def commit(self, first_token: TokenEvent) -> None:
        """Every layer was reported and this is the token sampled from the last position."""

    def abort(self, error: ErrorEvent) -> None:
        """The computation failed or was cancelled: tell the peer, send nothing more."""


class PrefillHandle(Protocol):
    """A submitted prefill."""

    def cancel(self) -> None:
        """Stop computing (idempotent).

        The sink gets an ErrorEvent `cancelled` unless it already ended.
        """

    def release(self) -> None:
        """Give the blocks back (idempotent).

        The sender calls it when the peer has acknowledged, or failed.
        """


class Reservation(Protocol):
    """Blocks that a decode worker holds for KV to come."""

    @property
    def n_blocks(self) -> int:
        """How many blocks the announced tokens need (the growth reserve is not counted)."""

    def layer_view(self, layer: int, block: int) -> memoryview:
        """Writable bytes `[k, v][kv_head][token][head_dim]` of one layer of the sequence's
        `block`-th block.
        """

    def release(self) -> None:
        """Give the blocks back (idempotent; does nothing once `Engine.decode` took them)."""


class DecodeHandle(Protocol):
    """A running sequence."""

    def cancel(self) -> None:
        """Stop and free (idempotent).

        The sink gets an ErrorEvent `cancelled` unless it already ended.
        """


class Engine(Protocol):
    """The inference engine of one worker process.

    Requests of two tenants never share cached KV.

    `due_s`: time.monotonic() by which the request's first token should be out, None: at no certain
    time. It only orders what waits (deadlines); nothing is given up for being late, and it means
    nothing once `tokens` has emitted ones.
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
        """Queue a prefill of `tokens` (prompt, then emitted ones from `prompt_tokens` on).

        The sink gets one TokenEvent and an EndEvent (`prefilled`, or `stop`/`length` when that
        token ends the request; then the sender is aborted with code `finished`).

        Raises NoCapacity (queue full) or InvalidInput.
        """

    def reserve(self, request_id: str, tokens: int, max_total_tokens: int) -> Reservation:
        """Hold blocks for `tokens` plus a growth reserve; `decode` may then emit up to
        `max_total_tokens` in all.

        Raises NoCapacity or InvalidInput (would never fit).
        """

    def decode(
        self,
        reservation: Reservation,
        tokens: Sequence[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        tenant: str = "",
    ) -> DecodeHandle:
        """Join the continuous batch.

        The KV of all `tokens` but the last is in the reservation; the last one is the first token,
        sampled by prefill. The sink gets the tokens after it. Takes ownership of the reservation.
        """

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
        """Prefill and decode here (role `both`, and the fallback of the dual path).

        The sink gets every new token.

        Raises NoCapacity or InvalidInput.
        """

    def prepare(self, sampling: SamplingParams) -> None:
        """Compile what `sampling` needs compiled; may take a second. Raises InvalidInput."""

    def limit_prefill(self, room: Room) -> None:
        """What decode has left elsewhere, for what is prefilled here: batches shrink while it has
        little (prefill_limit).
        """

    def load(self) -> Load: ...

    def alive(self) -> bool:
        """The engine's loop runs and has made progress lately (or is idle)."""

    def stop(self, timeout_s: float) -> None:
        """End the loop; whatever still runs gets an ErrorEvent `draining`."""
