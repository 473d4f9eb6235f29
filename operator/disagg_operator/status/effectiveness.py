"""PURE: Whether decode really spares itself the prompts that prefill has computed.

It is derived from counters of the decode workers. A verdict is held until the next one, so that a
deployment without traffic keeps its last, and changes only if two windows in a row say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

EFFECTIVE_SHARE = 0.95
# A window is judged after this time, and not before it holds this many prompt tokens.
WINDOW_S = 30.0
LEAST_TOKENS = 256.0


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Prompt tokens of decode workers, by where their KV came from."""

    computed: float = 0.0
    """Tokens that decode computed itself."""
    spared: float = 0.0
    """Tokens that came by transfer or were found in the cache of the decode worker."""

    def __add__(self, other: PromptTokens) -> PromptTokens:
        return PromptTokens(self.computed + other.computed, self.spared + other.spared)

    @property
    def total(self) -> float:
        """All of them."""
        return self.computed + self.spared

    @property
    def share(self) -> float:
        """The share that was not computed again. There must be tokens."""
        return self.spared / self.total


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on the last window with traffic."""

    effective: bool
    """Whether at least `EFFECTIVE_SHARE` of the prompt tokens were not computed again."""
    percent: int
    """The share that was not computed again, in percent; 100 for every verdict that is effective.

    What is well is not told more precisely, because status would otherwise change for ever.
    """


@dataclass(frozen=True, slots=True)
class Spared:
    """The observations of a deployment so far."""

    counters: Mapping[str, PromptTokens] = field(default_factory=dict)
    """The last counters of each decode worker."""
    window: PromptTokens = PromptTokens()
    """The tokens of the present window."""
    since_s: float = 0.0
    """The beginning of the present window."""
    verdict: Verdict | None = None
    """The present verdict, or None before the first."""
    dissent: bool = False
    """Whether the last window contradicted the verdict."""


def note(seen: Spared, counters: Mapping[str, PromptTokens], now_s: float) -> Spared:
    """Return `seen` with the present counters of the decode workers that answered.

    What a worker counted before it was known does not count: it may have been a prefill worker.
    """
    grown = PromptTokens()
    for pod, now in counters.items():
        grown += _grown(seen.counters.get(pod, now), now)
    window = seen.window + grown
    since_s = seen.since_s if seen.window.total > 0 else now_s
    seen = replace(seen, counters={**seen.counters, **counters}, window=window, since_s=since_s)
    if window.total < LEAST_TOKENS or (seen.verdict is not None and now_s - since_s < WINDOW_S):
        return seen
    found = _verdict(window.share)
    changes = seen.verdict is not None and found.effective != seen.verdict.effective
    verdict = seen.verdict if changes and not seen.dissent else found
    return replace(seen, window=PromptTokens(), verdict=verdict, dissent=changes and not seen.dissent)


def without(seen: Spared, pods: frozenset[str]) -> Spared:
    """Return `seen` without the counters of pods other than these."""
    if seen.counters.keys() <= pods:
        return seen
    return replace(seen, counters={pod: n for pod, n in seen.counters.items() if pod in pods})


def _grown(before: PromptTokens, now: PromptTokens) -> PromptTokens:
    if now.computed < before.computed or now.spared < before.spared:
        return now  # the worker has restarted from zero
    return PromptTokens(now.computed - before.computed, now.spared - before.spared)


def _verdict(share: float) -> Verdict:
    effective = share >= EFFECTIVE_SHARE
    return Verdict(effective, 100 if effective else int(100 * share))
