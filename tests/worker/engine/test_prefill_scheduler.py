"""Tests of the start and the content of prefill batches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples

from disagg_worker.engine.deadlines import Timing, Waiting
from disagg_worker.engine.prefill_pace import Pace
from disagg_worker.engine.prefill_scheduler import FairShares, PrefillPlan, PrefillRules, bucket, plan_prefill

RULES = PrefillRules(budget_tokens=1000, wait_s=0.05, utilisation=0.85, max_sequences=8)


def _waiting(*lengths: int, at_s: float = 0.0) -> list[Waiting]:
    return [Waiting(key, n, at_s) for key, n in enumerate(lengths)]


CASES: dict[str, tuple[list[Waiting], float, PrefillPlan]] = {
    "nothing waits": ([], 0.0, PrefillPlan(())),
    "one short prompt waits for company until its 50 ms are over": (_waiting(100), 0.0, PrefillPlan((), 0.05)),
    "after 50 ms it is computed alone": (_waiting(100), 0.05, PrefillPlan(((0, 100),))),
    "849 of 1000 tokens are not enough to start": (_waiting(283, 283, 283), 0.01, PrefillPlan((), 0.05)),
    "850 of 1000 tokens start at once": (_waiting(283, 283, 284), 0.01, PrefillPlan(((0, 283), (1, 283), (2, 284)))),
    "a full number of sequences starts at once": (
        _waiting(*[5] * 8),
        0.0,
        PrefillPlan(tuple((i, 5) for i in range(8))),
    ),
    "a due batch takes only the oldest one's length bucket": (
        _waiting(60, 300, 50),
        0.06,
        PrefillPlan(((0, 60), (2, 50))),
    ),
    "a bucket that is full starts though the oldest is of another": (
        _waiting(20, 290, 290, 290),
        0.0,
        PrefillPlan(((1, 290), (2, 290), (3, 290))),
    ),
    "a long prompt is cut to half the budget and short ones share the rest": (
        _waiting(1500, 60, 60),
        0.06,
        PrefillPlan(((0, 500), (1, 60), (2, 60))),
    ),
    "a begun prompt goes on without waiting": ([Waiting(0, 40, 0.0, started=True)], 0.01, PrefillPlan(((0, 40),))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_as_expected_when(name: str) -> None:
    waiting, now_s, expected = CASES[name]
    assert plan_prefill(waiting, now_s, RULES) == expected


@pytest.mark.parametrize(("tokens", "level"), [(1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (256, 2), (257, 3)])
def test_buckets_double_from_64_tokens(tokens: int, level: int) -> None:
    assert bucket(tokens) == level


waits = st.builds(Waiting, st.just(0), st.integers(1, 4000), st.floats(0, 1), st.booleans())
queues = st.lists(waits, max_size=30).map(
    lambda found: [
        Waiting(k, w.tokens_left, w.queued_at_s, w.started)
        for k, w in enumerate(sorted(found, key=lambda w: w.queued_at_s))
    ]
)
rules = st.builds(PrefillRules, st.integers(1, 2048), st.floats(0, 0.2), st.floats(0.1, 1.0), st.integers(1, 16))


@given(queues, st.floats(0, 2), rules)
def test_every_plan_keeps_its_bounds(waiting: list[Waiting], now_s: float, rules: PrefillRules) -> None:
    plan = plan_prefill(waiting, now_s, rules)
    left = {w.key: w.tokens_left for w in waiting}
    keys = [key for key, _ in plan.batch]
    assert len(keys) == len(set(keys)) <= rules.max_sequences
    assert sum(n for _, n in plan.batch) <= max(rules.budget_tokens, 1)
    assert all(1 <= n <= min(left[key], rules.chunk_tokens) for key, n in plan.batch)
    assert bool(waiting) == (bool(plan.batch) or plan.wake_at_s is not None)


@given(queues.filter(bool), rules)
def test_the_oldest_prompt_is_in_the_batch_as_soon_as_it_is_due(waiting: list[Waiting], rules: PrefillRules) -> None:
    plan = plan_prefill(waiting, waiting[0].queued_at_s + rules.wait_s, rules)
    assert plan.batch
    assert plan.batch[0][0] == waiting[0].key


@given(queues.filter(bool), rules)
def test_a_queue_that_nothing_joins_is_computed_whole(waiting: list[Waiting], rules: PrefillRules) -> None:
    left = {w.key: w for w in waiting}
    for _ in range(sum(w.tokens_left for w in waiting) + 1):
        if not left:
            break
        now_s = max(w.queued_at_s for w in left.values()) + rules.wait_s + 1
        for key, n in plan_prefill(list(left.values()), now_s, rules).batch:
            w = left.pop(key)
            if w.tokens_left > n:
                left[key] = Waiting(key, w.tokens_left - n, w.queued_at_s, started=True)
        left = dict(sorted(left.items()))
    assert not left


@given(st.integers(0, 63), st.integers(64, 2000))
def test_one_long_prompt_does_not_delay_a_short_one_beyond_the_next_batch(short: int, long_blocks: int) -> None:
    waiting = [Waiting(0, long_blocks * 16, 0.0, started=True), Waiting(1, short + 1, 0.0)]
    assert 1 in [key for key, _ in plan_prefill(waiting, 0.01, RULES).batch]


def test_a_processor_that_few_tokens_saturate_does_not_wait_for_more() -> None:
    rules = PrefillRules(1000, 0.05, 0.85, 8, saturating_tokens=200)
    assert plan_prefill(_waiting(170), 0.0, rules).batch == ((0, 170),)
    assert plan_prefill(_waiting(169), 0.0, rules) == PrefillPlan((), 0.05)


# ---- Several tenants ----


def _served(queue: list[Waiting], shares: FairShares) -> list[tuple[str, int]]:
    """Take one batch from the queue and return the tokens that each tenant got."""
    now_s = max(w.queued_at_s for w in queue) + 1
    batch = dict(plan_prefill(shares.order(queue), now_s, RULES).batch)
    work = [(w.tenant, batch[w.key]) for w in queue if w.key in batch]
    shares.charge(work, RULES.full_tokens)
    queue[:] = [
        Waiting(w.key, w.tokens_left - batch.get(w.key, 0), w.queued_at_s, w.started or w.key in batch, w.tenant)
        for w in queue
        if w.tokens_left > batch.get(w.key, 0)
    ]
    return work


lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=12)


@settings(max_examples=examples(40))
@given(lengths, st.integers(1, 6), st.integers(0, 10), st.integers(1, 3000))
def test_a_flood_delays_another_tenant_by_no_more_than_its_share(
    flood: list[int], floods: int, before: int, tokens: int
) -> None:
    """Check that, with k flooding tenants, a prompt of c chunks is computed within (k + 1) * (c +
    1) batches, however much the others ask for.
    """
    shares = FairShares()
    queue = [Waiting(i * floods + t, n, 0.0, tenant=f"flood {t}") for i, n in enumerate(flood) for t in range(floods)]
    for _ in range(before):
        if queue:
            _served(queue, shares)
    queue.append(Waiting(10_000, tokens, 1.0, tenant="other"))
    batches = 0
    while any(w.tenant == "other" for w in queue):
        _served(queue, shares)
        batches += 1
        more = flood[batches % len(flood)]
        queue += [Waiting(20_000 + batches * floods + t, more, 1.0, tenant=f"flood {t}") for t in range(floods)]
    chunks = -(-tokens // RULES.chunk_tokens)
    assert batches <= (floods + 1) * (chunks + 1)


@settings(max_examples=examples(40))
@given(
    st.lists(st.integers(1, 1500), min_size=10, max_size=30), st.lists(st.integers(1, 1500), min_size=10, max_size=30)
)
def test_of_two_tenants_that_wait_the_one_behind_is_always_in_the_next_batch(
    ours: list[int], theirs: list[int]
) -> None:
    shares = FairShares()
    queue = [Waiting(i, n, 0.0, tenant="a") for i, n in enumerate(ours)]
    queue += [Waiting(1000 + i, n, 0.0, tenant="b") for i, n in enumerate(theirs)]
    cost = {"a": 0.0, "b": 0.0}
    while {w.tenant for w in queue} == {"a", "b"}:
        work = _served(queue, shares)
        if abs(cost["a"] - cost["b"]) > 1e-6:
            assert min(cost, key=lambda t: cost[t]) in dict(work)
        price = max(1.0, RULES.full_tokens / sum(n for _, n in work))
        for tenant, tokens in work:
            cost[tenant] += price * tokens


def test_a_tenant_that_was_away_neither_owes_nor_is_owed() -> None:
    shares = FairShares()
    queue = [Waiting(i, 500, 0.0, tenant="busy") for i in range(20)]
    for _ in range(5):
        _served(queue, shares)
    queue += [Waiting(100 + i, 500, 0.0, tenant="new") for i in range(20)]
    got = [tenant for _ in range(8) for tenant, _ in _served(queue, shares)]
    assert abs(got.count("busy") - got.count("new")) <= 2


def test_one_tenants_prompts_keep_their_order() -> None:
    queue = _waiting(900, 10, 700, 20)
    assert FairShares().order(queue) == queue


@pytest.mark.parametrize(("due_s", "batch"), [(0.25, ((0, 100),)), (0.35, ((0, 100), (1, 90)))])
def test_a_prompt_does_not_join_a_batch_that_it_would_make_late(
    due_s: float, batch: tuple[tuple[int, int], ...]
) -> None:
    """100 tokens take 0.15 s, and 190 take 0.24 s."""
    waiting = [Waiting(0, 100, 0.0, due_s=due_s), Waiting(1, 90, 0.0, due_s=10.0)]
    timing = Timing(0.06, RULES.chunk_tokens, Pace(0.05, 0.001))
    assert plan_prefill(waiting, 0.06, RULES, timing).batch == batch


def test_to_charge_for_nothing_changes_no_order() -> None:
    shares = FairShares()
    waiting = [Waiting(0, 10, 0.0, tenant="a"), Waiting(1, 10, 0.0, tenant="b")]
    shares.charge([("a", 100)], 0)
    before = shares.order(waiting)
    shares.charge([], 100)
    assert [w.tenant for w in shares.order(waiting)] == [w.tenant for w in before] == ["b", "a"]
