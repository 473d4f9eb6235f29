"""PURE: The interface of the engine for the server and the KV transfer.

It does not depend on torch.

Every method of an engine may be called from any thread. Callbacks run on the engine's own thread
and must not block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from disagg_protocol.events import ErrorEvent, EventSink, TokenEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_wire.room import Room
from disagg_worker.values.engine_load import Load
from disagg_worker.values.kv_blocks import KvBlocks, KvCache
from disagg_worker.values.layouts import KvLayout, ModelInfo


class KvSender(Protocol):
    """The sending half of one transfer, driven by the prefill engine.

    Its methods must not block; the blocks stay leased until `PrefillHandle.release` is called.
    """

    @property
    def held_blocks(self) -> int:
        """The number of leading blocks that the peer has already, and that are not reported."""

    @property
    def reads_region(self) -> bool:
        """Whether it reads the blocks in the cache's region, and not by their views."""

    def layer_ready(self, layer: int, first_block: int, blocks: KvBlocks) -> None:
        """Take the KV of `layer`, which is final in these blocks of the sequence.

        `first_block` counts the sequence's blocks from 0.

        This is called once for every layer and block but the `held_blocks`, including those found
        in the prefix cache; without blocks for a layer of which nothing is to be sent. A block that
        a chunk fills only in part is reported when a later chunk (or the last one) completes it.
        """

    def commit(self, first_token: TokenEvent) -> None:
        """End the transfer well: every layer has been reported, and this is the token sampled from
        the last position.
        """

    def abort(self, error: ErrorEvent) -> None:
        """Tell the peer that the computation failed or was cancelled, and send nothing more."""


class PrefillHandle(Protocol):
    """A submitted prefill."""

    def cancel(self) -> None:
        """Stop computing (idempotent).

        The sink gets an ErrorEvent `cancelled` unless it has ended already.
        """

    def release(self) -> None:
        """Give the blocks back (idempotent).

        The sender calls this when the peer has acknowledged the KV or has failed.
        """


class Reservation(Protocol):
    """The blocks that a decode worker holds for KV that is to arrive."""

    @property
    def n_blocks(self) -> int:
        """The number of blocks that the announced tokens need, without the growth reserve."""

    @property
    def held_blocks(self) -> int:
        """The number of the first of them whose KV is there already, and must not be written."""

    def blocks(self, first: int, n: int) -> KvBlocks:
        """Return n of the sequence's blocks, to be written."""

    def written_in_region(self) -> None:
        """Note that the KV is written into the cache's region, and not by the blocks' views."""

    def release(self) -> None:
        """Give the blocks back (idempotent).

        Does nothing once `Engine.decode` has taken them.
        """


class DecodeHandle(Protocol):
    """A running sequence."""

    def cancel(self) -> None:
        """Stop the sequence and free its blocks (idempotent).

        The sink gets an ErrorEvent `cancelled` unless it has ended already.
        """


class Engine(Protocol):
    """The inference engine of one worker process.

    Requests of different tenants never share cached KV.

    `due_s` is the time.monotonic() by which the first token of a request should be out, or None. It
    only orders the waiting requests (see deadlines): none is given up because it is late. It has no
    effect if `tokens` includes emitted tokens.
    """

    model: ModelInfo
    layout: KvLayout

    @property
    def cache(self) -> KvCache: ...

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
        """Queue a prefill of `tokens`: the prompt and, from `prompt_tokens` on, emitted tokens.

        The sink gets one TokenEvent and an EndEvent. The finish reason is `prefilled`, or `stop` or
        `length` if that token ends the request; the sender is then aborted with code `finished`.

        Raises NoCapacity if the queue is full, or InvalidInput.
        """

    def reserve(
        self, request_id: str, tokens: int, max_total_tokens: int, prompt: Sequence[int] = (), tenant: str = ""
    ) -> Reservation:
        """Hold blocks for `tokens` and a growth reserve.

        `decode` may then emit tokens up to a total of `max_total_tokens`. If `prompt` is given, it
        has these tokens: the first blocks whose KV is here are shared and need not arrive. They
        stay here until the reservation is released, or its sequence has ended.

        Raises NoCapacity, or InvalidInput if the tokens would never fit.
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
        """Add a sequence to the continuous batch and take ownership of the reservation.

        The reservation holds the KV of all `tokens` but the last, which is the first token, sampled
        by prefill. The sink gets the tokens after it.
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
        most_missing: int | None = None,
    ) -> DecodeHandle:
        """Prefill and decode here (role `both`, and the fallback of the dual path).

        With `most_missing`, only if the KV of the first tokens is in the cache, if at most so many
        of the others are missing, and if they need not wait for others. That KV stays here until
        the sequence has ended, and what is computed counts in `Load.rest_tokens_total`.

        The sink gets every new token. Raises NoCapacity or InvalidInput.
        """

    def prepare(self, sampling: SamplingParams) -> None:
        """Compile the grammar of `sampling`, if it has one, which may take a second.

        Raises InvalidInput.
        """

    def limit_prefill(self, room: Room) -> None:
        """Take note of the room of the decode workers that receive the KV computed here.

        Batches shrink while they have little room (see prefill_limit).
        """

    def load(self) -> Load: ...

    def alive(self) -> bool:
        """Return whether the engine's loop runs and has made progress lately, or is idle."""

    def stop(self, timeout_s: float) -> None:
        """End the loop. Requests that still run get an ErrorEvent `draining`."""
