"""The price of a missed objective: its causes, and how long they last."""

from __future__ import annotations

from dataclasses import replace

from tests.operator.autoscaling.policy.test_predictive import RULES, drive, steady

from disagg_operator.autoscaling.policy.observation import Observation


def test_misses_raise_the_price_and_with_it_the_size() -> None:
    calm, state = steady()
    missing, _ = drive(RULES, lambda _: 40.0, 600, state, (calm.prefill, calm.decode), 3600, change=lambda o: replace(
        o, prefill=replace(o.prefill, ttft_ok=0.8 * o.prefill.ttft_total)))  # fmt: skip
    assert missing[-1].numbers["prefill_price"] > 2 * calm.numbers["prefill_price"]
    assert missing[-1].prefill > calm.prefill
    assert missing[-1].decode <= calm.decode  # the other pool has its own budget


def test_what_was_missed_in_a_storm_is_soon_forgotten() -> None:
    """Otherwise workers for the storm would be paid for long after it."""

    def storm(o: Observation) -> Observation:
        missed = 0.5 if 3600 <= o.now_s < 3660 else 0.0
        return replace(o, prefill=replace(o.prefill, ttft_ok=o.prefill.ttft_total * (1 - missed)))

    targets, _ = drive(RULES, lambda _: 40.0, 3 * 3600, sizes=(8, 8), change=storm)
    before, after, later = (targets[int(s / 15)].numbers["prefill_price"] for s in (3500, 3700, 3600 + 5400))
    assert after > 4 * before
    assert later < 2 * before
