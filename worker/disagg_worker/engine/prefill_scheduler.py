"""PURE: The choice of the waiting prompts for the next prefill batch, and of the time at which it
starts.

A batch is taken from one length bucket (powers of two), so that short prompts do not wait for long
ones in the same batch. It starts once its bucket keeps the processor busy (`utilisation` of the
tokens that saturate it), or once the oldest of all prompts has waited for `wait_s`. It is led by
the first prompt in fair order, which is always in it, so that no prompt starves. A prompt longer
than half the budget is computed in chunks of at most half the budget, and shorter prompts share the
rest of each batch, so that a long prompt never blocks them. If prompts have due times (deadlines),
a batch makes no prompt in it late, and it includes late prompts only if it includes all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from disagg_worker.engine.deadlines import Standing, Timing, Waiting


@dataclass(frozen=True, slots=True)
class PrefillRules:
    """The rules by which batches are made."""

    budget_tokens: int
    """Tokens that a batch may hold."""
    wait_s: float
    """The longest time for which a prompt waits for others to share its batch."""
    utilisation: float
    """The share of `full_tokens` with which a batch starts at once."""
    max_sequences: int
    """Prompts that a batch may hold."""
    saturating_tokens: int | None = None
    """The size in tokens from which on larger batches compute no more tokens per second; None: the
    budget.
    """

    @property
    def chunk_tokens(self) -> int:
        return max(1, self.budget_tokens // 2)

    @property
    def full_tokens(self) -> int:
        """The number of tokens that keep the processor busy."""
        return min(self.budget_tokens, self.saturating_tokens or self.budget_tokens)


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """The next batch, or the time at which to plan again."""

    batch: tuple[tuple[int, int], ...]
    """(key, tokens to compute now) of each prompt; empty if none is to start now."""
    wake_at_s: float | None = None
    """The time at which to plan again; None: when a new prompt has arrived."""


class FairShares:
    """Start-time fair queueing between tenants (Goyal, Vin, Cheng 1996), in tokens.

    If two tenants wait, neither gets more than one batch ahead of the other. A tenant that had
    nothing to do gets no credit for that time.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._now = 0.0

    def order(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Return the prompts in the order in which they are to be computed.

        The prompts of one tenant keep their order, that of due times or arrival.
        """
        active = {w.tenant for w in waiting}
        if len(active) <= 1:
            return list(waiting)
        tags = {t: self._tag(t) for t in active}
        tagged = []
        for w in waiting:
            tagged.append((tags[w.tenant], w))
            tags[w.tenant] += w.tokens_left
        return [w for _, w in sorted(tagged, key=lambda entry: entry[0])]

    def charge(self, batch: Sequence[tuple[str, int]], least_tokens: int) -> None:
        """Charge the tenants for a batch of (tenant, tokens) that is computed now.

        A batch of fewer than `least_tokens` takes as long as one of `least_tokens`, and costs as
        much. The virtual time becomes the start tag of the batch in service.
        """
        if not batch:
            return
        self._now = max(self._now, min(self._tag(tenant) for tenant, _ in batch))
        price = max(1.0, least_tokens / sum(tokens for _, tokens in batch))
        for tenant, tokens in batch:
            self._served[tenant] = self._tag(tenant) + price * tokens
        self._served = {t: n for t, n in self._served.items() if n > self._now}

    def _tag(self, tenant: str) -> float:
        return max(self._now, self._served.get(tenant, 0.0))


def bucket(tokens: int) -> int:
    """Return the length bucket: 0 for up to 64 tokens, then one more for each doubling."""
    return max(0, (tokens - 1) // 64).bit_length()


def plan_prefill(
    waiting: Sequence[Waiting], now_s: float, rules: PrefillRules, timing: Timing | None = None
) -> PrefillPlan:
    """Plan the next batch of the `waiting` prompts, which are in fair order (with one tenant, that
    of due times or arrival).

    `timing` is the one by which they were ordered, at `now_s`.
    """
    if not waiting:
        return PrefillPlan(())
    timing = timing or Timing(now_s, rules.chunk_tokens)
    start_at_s = min(w.queued_at_s for w in waiting) + rules.wait_s
    if now_s >= start_at_s or any(w.started for w in waiting):
        return PrefillPlan(_fill(waiting, _candidates(waiting, waiting[0], rules), rules, timing))
    seen: set[int] = set()
    for leader in waiting:
        level = bucket(leader.tokens_left)
        if level in seen:
            continue
        seen.add(level)
        candidates = _candidates(waiting, leader, rules)
        offered_tokens = sum(w.tokens_left for w in candidates)
        if offered_tokens >= rules.utilisation * rules.full_tokens or len(candidates) >= rules.max_sequences:
            return PrefillPlan(_fill(waiting, candidates, rules, timing))
    return PrefillPlan((), start_at_s)


def _candidates(waiting: Sequence[Waiting], leader: Waiting, rules: PrefillRules) -> list[Waiting]:
    """Return the prompts that may share a batch with `leader`, in the order in which they get room;
    the leader is the first.
    """
    if leader.tokens_left <= rules.chunk_tokens:
        alike = [w for w in waiting if w is not leader and bucket(w.tokens_left) == bucket(leader.tokens_left)]
        return [leader, *alike]
    short = [w for w in waiting if w is not leader and w.tokens_left <= rules.chunk_tokens]
    long = [w for w in waiting if w is not leader and w.tokens_left > rules.chunk_tokens]
    return [leader, *short, *long]


def _fill(
    waiting: Sequence[Waiting], candidates: Sequence[Waiting], rules: PrefillRules, timing: Timing
) -> tuple[tuple[int, int], ...]:
    """Return the batch: the leader, and those of the others for which there is room.

    A prompt does not join if it would make another one in the batch late, or be late in it. A
    prompt that is late already does not join either while one that is not late waits outside the
    batch, since it would only delay that one.
    """
    late = {w.key for w in waiting if timing.standing(w) is Standing.LATE}
    leader, *others = candidates
    batch: list[tuple[int, int]] = []
    room, computed, end_by_s = rules.budget_tokens, 0, inf
    outside = len(waiting) - len(late)
    for w in (leader, *sorted(others, key=lambda w: w.key in late)):
        take = min(w.tokens_left, rules.chunk_tokens)
        if take > room or len(batch) >= rules.max_sequences or (batch and w.key in late and outside):
            continue
        tokens, by_s = computed + timing.computed_tokens(w), min(end_by_s, timing.end_by_s(w))
        if batch and timing.batch_end_s(tokens) > by_s:
            continue
        batch.append((w.key, take))
        room, computed, end_by_s = room - take, tokens, by_s
        outside -= w.key not in late
    return tuple(batch)
