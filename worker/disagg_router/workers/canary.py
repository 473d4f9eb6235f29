"""PURE: The part of the requests that workers of a new revision get while they are tried.

The operator says it with the label of the pools' Services (disagg_wire.canary). The percentage is
followed whatever the numbers of ready workers are, and a request goes elsewhere rather than fail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from disagg_router.workers.pair_choice import Choice
from disagg_router.workers.shares import pair_shares
from disagg_router.workers.worker_info import Member, Worker
from disagg_wire.canary import CanaryWord, name_of, read_word

Ask = Callable[[Sequence[Worker], Collection[str]], Choice | None]


@dataclass(frozen=True, slots=True)
class Canary:
    """The operator's word on the revisions, by pool."""

    words: Mapping[str, CanaryWord]

    @property
    def percent(self) -> int:
        """The percentage of the requests; the smallest while the pools differ for a moment."""
        return min((word.percent for word in self.words.values() if word.revision), default=0)

    @property
    def name(self) -> str:
        """The revisions that are tried, as one name."""
        return name_of(self.words)

    @property
    def _new(self) -> frozenset[str]:
        # A worker that changes its role keeps the revision of the pool that it comes from.
        return frozenset(word.revision for word in self.words.values() if word.revision)

    @property
    def _left(self) -> frozenset[str]:
        return frozenset(revision for word in self.words.values() for revision in word.left)

    def is_new(self, worker: Worker | None) -> bool:
        return worker is not None and worker.revision in self._new

    def is_left(self, worker: Worker | None) -> bool:
        """Return whether a worker is of a revision that has been given up."""
        return worker is not None and worker.revision in self._left

    def side(self, prefill: Worker | None, decode: Worker | None) -> bool | None:
        """Return whether a pair is of the new revision, or None if it is of neither.

        A pool that does not change serves both.
        """
        pair = [w for w in (prefill, decode) if w is not None]
        if not pair or any(map(self.is_left, pair)):
            return None
        return any(map(self.is_new, pair))

    def new(self, workers: Iterable[Worker]) -> list[Worker]:
        """Return the workers that serve the part of the new revision."""
        kept = {role for role in ("prefill", "decode") if role not in self.words or not self.words[role].revision}
        return [w for w in workers if self.is_new(w) or (w.role in kept and not self.is_left(w))]

    def old(self, workers: Iterable[Worker]) -> list[Worker]:
        return [w for w in workers if not self.is_new(w) and not self.is_left(w)]


def canary_of(members: Iterable[Member]) -> Canary | None:
    """Return what the members' pools say, or None if nothing is said.

    Slices of one Service may have different words for a moment; then the smaller percentage counts.
    """
    words: dict[str, CanaryWord] = {}
    for member in members:
        word = read_word(member.canary)
        if word is None:
            continue
        for pool in member.pools:
            if pool not in words or word.percent < words[pool].percent:
                words[pool] = word
    return Canary(words) if words else None


def chosen(canary: Canary, workers: Sequence[Worker], roll: float, full: Collection[str], ask: Ask) -> Choice | None:
    """Return the workers for a request, of which 0 <= `roll` < 1 decides the revision.

    `ask(workers, full)` chooses among workers. A side that has no pair, or a new one that is full,
    leaves its requests to the other. The old side does not: new workers get no more than their
    part because the others are busy. What has been given up serves if nothing else can.
    """
    new, old = canary.new(workers), canary.old(workers)
    for side in (new, old) if 100 * roll < canary.percent else (old, new):
        choice = ask(side, full)
        if _whole(choice):
            return choice
        if side is old and full and _whole(ask(old, ())):
            return choice
    rest = [w for w in workers if not canary.is_left(w)]
    return ask(rest, full) or ask(workers, full)


def _whole(choice: Choice | None) -> bool:
    """Return whether the prompt is computed by a worker whose pool does that."""
    if choice is None:
        return False
    return choice.prefill is not None or (choice.decode is not None and choice.decode.serves("prefill"))


def team_shares(canary: Canary, teams: Sequence[Sequence[Worker]]) -> list[float]:
    """Return the parts of the requests for one name that workers of different weights get."""
    kinds = [_kind(canary, team) for team in teams]
    parts = {"new": canary.percent / 100, "old": 1 - canary.percent / 100}
    if "new" not in kinds or "old" not in kinds:
        parts = dict.fromkeys(parts, 1.0)
    out = [0.0] * len(teams)
    for kind, part in parts.items():
        which = [i for i, found in enumerate(kinds) if found == kind]
        for i, share in zip(which, pair_shares([_counts(teams[i]) for i in which]), strict=True):
            out[i] = part * share
    return out


def _kind(canary: Canary, team: Sequence[Worker]) -> str:
    rest = [w for w in team if not canary.is_left(w)]
    if not rest:
        return "left"
    return "new" if all(map(canary.is_new, rest)) else "old"


def _counts(team: Sequence[Worker]) -> tuple[int, int]:
    return sum(w.serves("prefill") for w in team), sum(w.serves("decode") for w in team)
