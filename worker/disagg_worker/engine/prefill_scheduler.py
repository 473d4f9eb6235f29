"""PURE: which waiting prompts make the next prefill batch, and when it starts.

A batch is taken from one length bucket (powers of two), starting with the bucket of the oldest prompt. It starts once it would
fill `utilisation` of the token budget, or when its oldest member has waited `wait_s`. A prompt longer than half the budget is computed
in chunks of at most half the budget, and shorter prompts share the rest of each batch, so one long prompt never blocks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt that still has `tokens_left` to compute. `started`: a chunk of it was computed already."""

    key: int
    tokens_left: int
    queued_at_s: float
    started: bool = False


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """`batch`: (key, tokens to compute now), or empty: ask again at `wake_at_s` (None: when something new has come)."""

    batch: tuple[tuple[int, int], ...]
    wake_at_s: float | None = None


def bucket(tokens: int) -> int:
    """The length bucket: 0 for up to 64 tokens, then one for each doubling."""
    return max(0, (tokens - 1) // 64).bit_length()


def plan_prefill(
    waiting: Sequence[Waiting], now_s: float, budget_tokens: int, wait_s: float, utilisation: float, max_sequences: int
) -> PrefillPlan:
    """The next batch out of `waiting`, which is in order of arrival."""
    if not waiting:
        return PrefillPlan(())
    oldest = waiting[0]
    chunk_tokens = max(1, budget_tokens // 2)
    same = [w for w in waiting if bucket(w.tokens_left) == bucket(oldest.tokens_left)]
    others = [w for w in waiting if bucket(w.tokens_left) < bucket(oldest.tokens_left)]
    long = oldest.tokens_left > chunk_tokens
    candidates = [oldest, *others] if long else same
    batch: list[tuple[int, int]] = []
    room = budget_tokens
    for w in candidates:
        take = min(w.tokens_left, chunk_tokens) if w is oldest and long else w.tokens_left
        if take > room or len(batch) == max_sequences:
            continue
        batch.append((w.key, take))
        room -= take
    full = budget_tokens - room >= utilisation * budget_tokens or len(batch) == max_sequences
    due_s = oldest.queued_at_s + wait_s
    if full or long or oldest.started or now_s >= due_s:
        return PrefillPlan(tuple(batch))
    return PrefillPlan((), due_s)
