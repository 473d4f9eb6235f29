"""PURE: how large a prefill batch may be, by the room that decode has.

While decode has room, batches are as large as the settings allow. Below a quarter of room they
shrink in proportion, down to what just saturates the processor when decode is full: so prefill
loses no speed, but fewer sequences arrive at decode at once, each sooner, and less is computed that
nobody can decode yet. The same where decode's steps take longer than they may, if that is said.
What is known of decode comes with each reservation and with each poll of a router; when nothing has
come for a while there is no limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from disagg_wire.room import Room
from disagg_worker.engine.prefill_scheduler import PrefillRules

# With this much of its room left, decode counts as empty enough.
_PLENTY = 0.25
_FRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class KnownRoom:
    """Room as it was said at monotonic time `at_s`."""

    room: Room
    at_s: float


def free_share(room: Room) -> float:
    """What is left of decode, 0 to 1: of its KV or its seats, whichever is scarcer."""
    kv = room.free_tokens / room.total_tokens if room.total_tokens > 0 else 0.0
    seats = room.free_seats / room.total_seats if room.total_seats > 0 else 0.0
    return min(1.0, max(0.0, min(kv, seats)))


def limited(
    rules: PrefillRules, known: KnownRoom | None, now_s: float, step_target_s: float | None = None
) -> PrefillRules:
    """The rules with their token budget and number of prompts cut to what decode can take.

    `step_target_s`: how long its steps may take.
    """
    if known is None or now_s - known.at_s > _FRESH_S:
        return rules
    share = min(1.0, free_share(known.room) / _PLENTY)
    if step_target_s is not None and known.room.step_s > step_target_s:
        share *= step_target_s / known.room.step_s
    least = min(rules.budget_tokens, rules.full_tokens)
    tokens = least + math.floor(share * (rules.budget_tokens - least))
    prompts = max(1, math.ceil(share * rules.max_sequences))
    if tokens == rules.budget_tokens and prompts == rules.max_sequences:
        return rules
    return replace(rules, budget_tokens=tokens, max_sequences=prompts)
