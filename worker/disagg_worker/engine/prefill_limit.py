"""PURE: The limit of prefill batches by the room that decode has.

While decode has room, batches are as large as the settings allow. Once less than a quarter of the
room is left, they shrink in proportion, down to the size that just saturates the processor when
decode is full. Prefill then loses no speed, but fewer sequences arrive at decode at once, each of
them sooner, and less is computed that nobody can decode yet. The same happens if decode steps take
longer than a target, if there is one. The state of decode comes with each prefill request and with
each poll of a router; without news for a while there is no limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from disagg_wire.room import Room
from disagg_worker.engine.prefill_scheduler import PrefillRules

# Decode counts as empty enough with this share of its room left.
_PLENTY = 0.25
_FRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class KnownRoom:
    """The room of decode as it was reported at the monotonic time `at_s`."""

    room: Room
    at_s: float


def free_share(room: Room) -> float:
    """Return the share of decode's room that is left, 0 to 1: of its KV or of its seats, whichever
    is scarcer.
    """
    kv = room.free_tokens / room.total_tokens if room.total_tokens > 0 else 0.0
    seats = room.free_seats / room.total_seats if room.total_seats > 0 else 0.0
    return min(1.0, max(0.0, min(kv, seats)))


def limited(
    rules: PrefillRules, known: KnownRoom | None, now_s: float, step_target_s: float | None = None
) -> PrefillRules:
    """Return the rules with the token budget and the number of prompts reduced to the room of
    decode.

    `step_target_s` is the time that a decode step may take.
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
