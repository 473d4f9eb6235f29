"""Tests of the verdict on whether decode is spared what prefill has computed."""

from __future__ import annotations

import pytest

from disagg_operator.status.effectiveness import (
    LEAST_TOKENS,
    WINDOW_S,
    PromptTokens,
    Spared,
    Verdict,
    note,
    without,
)

GOOD, BAD = Verdict(True, 100), Verdict(False, 50)
START = note(Spared(), {"d": PromptTokens(0, 0)}, 0.0)


def windows(*shares: float, seen: Spared = START) -> list[Verdict | None]:
    """Return the verdict after each window of 1000 tokens, of which this share was spared."""
    out, at_s = [], 0.0
    total = seen.counters["d"]
    for share in shares:
        for _ in range(2):  # a window begins with its first tokens, and ends WINDOW_S later
            total = total + PromptTokens(500 * (1 - share), 500 * share)
            at_s += WINDOW_S
            seen = note(seen, {"d": total}, at_s)
        out.append(seen.verdict)
    return out


def test_the_first_tokens_decide_at_once() -> None:
    few = note(START, {"d": PromptTokens(0, LEAST_TOKENS - 1)}, 1.0)
    assert few.verdict is None
    assert note(few, {"d": PromptTokens(0, LEAST_TOKENS)}, 1.1).verdict == GOOD
    assert note(START, {"d": PromptTokens(LEAST_TOKENS, LEAST_TOKENS)}, 1.0).verdict == BAD


@pytest.mark.parametrize(
    ("share", "verdict"),
    [(1.0, GOOD), (0.96, GOOD), (0.949, Verdict(False, 94)), (0.5, BAD), (0.0, Verdict(False, 0))],
)
def test_the_share_decides(share: float, verdict: Verdict) -> None:
    assert windows(share, share)[-1] == verdict


@pytest.mark.parametrize(
    ("shares", "verdicts"),
    [
        pytest.param((1, 1, 0.5, 1, 0.5, 1), [GOOD] * 6, id="one window is no change"),
        pytest.param((1, 0.5, 0.5, 0.5), [GOOD, GOOD, BAD, BAD], id="two are"),
        pytest.param((0.5, 1, 0.5, 1, 1), [BAD, BAD, BAD, BAD, GOOD], id="the way back is as long"),
        pytest.param((0.5, 0.2), [BAD, Verdict(False, 20)], id="the share of a bad verdict follows"),
    ],
)
def test_a_verdict_does_not_flap(shares: tuple[float, ...], verdicts: list[Verdict]) -> None:
    first, *rest = shares
    seen = note(START, {"d": PromptTokens(500 * (1 - first), 500 * first)}, 0.0)
    assert [seen.verdict, *windows(*rest, seen=seen)] == verdicts


def test_without_traffic_the_verdict_is_held() -> None:
    seen = note(START, {"d": PromptTokens(0, 1000)}, 1.0)
    for at_s in (100.0, 200.0, 300.0):
        seen = note(seen, {"d": PromptTokens(0, 1000)}, at_s)
        assert seen.verdict == GOOD
    assert note(seen, {}, 400.0).verdict == GOOD


def test_what_a_worker_counted_before_it_was_known_is_of_another_life() -> None:
    flipped = note(START, {"d": PromptTokens(0, 0), "flipped": PromptTokens(1e6, 0)}, 1.0)
    assert flipped.verdict is None
    after = note(flipped, {"d": PromptTokens(0, 0), "flipped": PromptTokens(1e6, 1000)}, 2.0)
    assert after.verdict == GOOD


def test_a_worker_that_restarts_counts_from_zero() -> None:
    seen = note(START, {"d": PromptTokens(10, 190)}, 1.0)
    assert seen.verdict is None
    assert note(seen, {"d": PromptTokens(0, 100)}, 2.0).verdict == GOOD  # 290 of 300


def test_pods_that_are_gone_are_forgotten() -> None:
    seen = note(START, {"e": PromptTokens(1, 1)}, 1.0)
    assert without(seen, frozenset({"d", "e", "f"})) is seen
    assert set(without(seen, frozenset({"e"})).counters) == {"e"}
