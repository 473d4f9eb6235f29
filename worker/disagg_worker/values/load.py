"""PURE: What an engine has to do, as it is reported."""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_wire.room import NO_ROOM, Room


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot for `info` and metrics. free + used + leased = total blocks; free ones may have
    cached content.

    room: for sequences to decode. prefill_limit_tokens: what a prefill batch may hold now, of
    prefill_most_tokens by the settings. prompt_tokens_total: computed, so without the cached ones.
    step_seconds_total: of steps, `forward` in the network, `rest` beside it. work_total: what was
    in the batches and steps, by name (disagg_worker.engine.steps.Work). late_prompts_total: whose
    first token came after it was due.
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
    room: Room = NO_ROOM
    prefill_limit_tokens: int = 0
    prefill_most_tokens: int = 0
    late_prompts_total: int = 0
