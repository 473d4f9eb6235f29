"""PURE: which waiting prompts make the next prefill batch, and when it starts.

A batch is taken from one length bucket (powers of two), so that short prompts do not wait for long
ones computed beside them. It starts once its bucket keeps the processor busy (`utilisation` of the
tokens that saturate it), or when the oldest prompt of all has waited `wait_s`. It is led by the
first prompt in fair order, which is always in it, so nothing starves. A prompt longer than half the
budget is computed in chunks of at most half the budget, and shorter prompts share the rest of each
batch, so one long prompt never blocks them. Where prompts have dues (deadlines) a batch makes
nobody in it late, and takes who is late already only when it holds all who are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from disagg_worker.engine.deadlines import Standing, Timing, Waiting


@dataclass(frozen=True, slots=True)
class PrefillRules:
    """How batches are made: tokens a batch may hold, when it starts, how many prompts it may hold,
    and from how many tokens on a batch computes no more tokens a second than a smaller one (None:
    the budget).
    """

    budget_tokens: int
    wait_s: float
    utilisation: float
    max_sequences: int
    saturating_tokens: int | None = None

    @property
    def chunk_tokens(self) -> int:
        return max(1, self.budget_tokens // 2)

    @property
    def full_tokens(self) -> int:
        """So many keep the processor busy."""
        return min(self.budget_tokens, self.saturating_tokens or self.budget_tokens)


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """`batch`: (key, tokens to compute now), or empty: ask again at `wake_at_s` (None: when
    something new has come).
    """

    batch: tuple[tuple[int, int], ...]
    wake_at_s: float | None = None


class FairShares:
    """Start-time fair queueing between tenants (Goyal, Vin, Cheng 1996) in tokens: of two tenants
    that both wait, neither gets more than one batch ahead of the other. A tenant that had nothing
    to do gets no credit for it.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._now = 0.0

    def order(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """`waiting` in the order in which it is to be computed.

        A tenant's own prompts keep their order, that of their dues or arrivals.
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
        """(tenant, tokens) that are computed now.

        A batch of less than `least_tokens` takes as long as one of so many, and costs as much. The
        virtual time becomes the start tag of what is in service.
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
    """The length bucket: 0 for up to 64 tokens, then one for each doubling."""
    return max(0, (tokens - 1) // 64).bit_length()


def plan_prefill(
    waiting: Sequence[Waiting], now_s: float, rules: PrefillRules, timing: Timing | None = None
) -> PrefillPlan:
    """The next batch out of `waiting`, which is in fair order (of dues or arrival, where there is
    one tenant). `timing`: with which dues it was ordered, at `now_s`.
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
    """Who may be computed together with `leader`, in the order in which they get room; the leader
    is the first.
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
    """The leader, and of the others those that there is room for.

    Nobody joins who would make somebody in the batch late, or come late in it; nor does who is late
    already while anybody waits who isn't and is not in the batch: it would only delay that one.
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
