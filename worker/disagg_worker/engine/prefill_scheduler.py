"""PURE: which waiting prompts make the next prefill batch, and when it starts.

A batch is taken from one length bucket (powers of two), so that short prompts do not wait for long ones computed beside them. It starts
once its bucket holds `utilisation` of the token budget, or when the oldest prompt of all has waited `wait_s`; that one is then in it, so
nothing starves. A prompt longer than half the budget is computed in chunks of at most half the budget, and shorter prompts share the
rest of each batch, so one long prompt never blocks them.
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
class PrefillRules:
    """How batches are made: tokens a batch may hold, when it starts, and how many prompts it may hold."""

    budget_tokens: int
    wait_s: float
    utilisation: float
    max_sequences: int

    @property
    def chunk_tokens(self) -> int:
        return max(1, self.budget_tokens // 2)


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """`batch`: (key, tokens to compute now), or empty: ask again at `wake_at_s` (None: when something new has come)."""

    batch: tuple[tuple[int, int], ...]
    wake_at_s: float | None = None


def bucket(tokens: int) -> int:
    """The length bucket: 0 for up to 64 tokens, then one for each doubling."""
    return max(0, (tokens - 1) // 64).bit_length()


def plan_prefill(waiting: Sequence[Waiting], now_s: float, rules: PrefillRules) -> PrefillPlan:
    """The next batch out of `waiting`, which is in order of arrival."""
    if not waiting:
        return PrefillPlan(())
    oldest = waiting[0]
    due_s = oldest.queued_at_s + rules.wait_s
    if oldest.started or now_s >= due_s:
        return PrefillPlan(_fill(_candidates(waiting, oldest, rules), rules))
    seen: set[int] = set()
    for leader in waiting:
        level = bucket(leader.tokens_left)
        if level in seen:
            continue
        seen.add(level)
        candidates = _candidates(waiting, leader, rules)
        offered_tokens = sum(w.tokens_left for w in candidates)
        if offered_tokens >= rules.utilisation * rules.budget_tokens or len(candidates) >= rules.max_sequences:
            return PrefillPlan(_fill(candidates, rules))
    return PrefillPlan((), due_s)


def _candidates(waiting: Sequence[Waiting], leader: Waiting, rules: PrefillRules) -> list[Waiting]:
    """Who may be computed together with `leader`, in the order in which they get room; the leader is the first."""
    if leader.tokens_left <= rules.chunk_tokens:
        return [w for w in waiting if bucket(w.tokens_left) == bucket(leader.tokens_left)]
    short = [w for w in waiting if w is not leader and w.tokens_left <= rules.chunk_tokens]
    long = [w for w in waiting if w is not leader and w.tokens_left > rules.chunk_tokens]
    return [leader, *short, *long]


def _fill(candidates: Sequence[Waiting], rules: PrefillRules) -> tuple[tuple[int, int], ...]:
    batch: list[tuple[int, int]] = []
    room = rules.budget_tokens
    for w in candidates:
        take = min(w.tokens_left, rules.chunk_tokens)
        if take <= room and len(batch) < rules.max_sequences:
            batch.append((w.key, take))
            room -= take
    return tuple(batch)
