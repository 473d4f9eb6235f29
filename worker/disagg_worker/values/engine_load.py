"""PURE: The load that an engine reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_wire.room import NO_ROOM, Room


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot of an engine's load for `info` and the metrics.

    Fields that end in `_total` count since the engine started, except `blocks_total`.
    """

    waiting_requests: int
    """Requests that wait to be computed."""
    waiting_tokens: int
    """Tokens of the waiting requests that are still to be computed."""
    running_requests: int
    """Requests that are being computed."""
    blocks_total: int
    """KV blocks of the cache: free + used + leased."""
    blocks_free: int
    """KV blocks that can be allocated; they may still hold cached content."""
    blocks_used: int
    """KV blocks that sequences compute with."""
    blocks_leased: int
    """KV blocks that wait for KV to arrive or to be sent."""
    prompt_tokens_total: int = 0
    """Prompt tokens that were computed, so without the cached ones."""
    rest_tokens_total: int = 0
    """The part of these that was computed here by choice, instead of being sent here."""
    generated_tokens_total: int = 0
    """Output tokens that were generated."""
    steps_total: dict[str, int] = field(default_factory=dict)
    """Steps by kind."""
    cached_tokens_total: int = 0
    """Prompt tokens that were found in the cache."""
    preemptions_total: int = 0
    """Times that a sequence lost its blocks and had to be computed again."""
    host_cache_bytes: int = 0
    """Bytes that the KV cache in host memory holds."""
    step_seconds_total: dict[str, float] = field(default_factory=dict)
    """Seconds of all steps: `forward` in the network, `rest` outside it."""
    work_total: dict[str, float] = field(default_factory=dict)
    """The content of the batches and steps, by name (disagg_worker.engine.steps.Work)."""
    room: Room = NO_ROOM
    """The room for more sequences to decode."""
    prefill_limit_tokens: int = 0
    """Tokens that a prefill batch may hold now."""
    prefill_most_tokens: int = 0
    """Tokens that the settings allow a prefill batch to hold."""
    silent_s: float = 0.0
    """Seconds since the engine's loop last ended a step or had nothing to do."""
    late_prompts_total: int = 0
    """Prompts whose first token came after it was due."""
