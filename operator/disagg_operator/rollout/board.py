"""PURE: A working copy of the numbers of a rollout, and the changes that may be made to them.

A worker that is to come counts as held at once and as serving only once it is ready. A worker that
is to go counts as gone at once and as held until its pod no longer exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

from disagg_operator.rollout.progress import seen
from disagg_operator.rollout.room import Room, holding, room_of
from disagg_operator.rollout.standing import Serving, cells_of, one_sided, standing
from disagg_operator.rollout.values import PODS, RolloutRules, RolloutState, Workers, WorkersKey
from disagg_wire.roles import DECODE, PREFILL, ROLES

Change = dict[WorkersKey, int]


class Board:
    """A working copy of the numbers, and what may be done to them."""

    def __init__(self, state: RolloutState, rules: RolloutRules) -> None:
        self.state, self.rules = state, rules
        self.groups = {w.key: w for w in state.workers}
        for role in ROLES:
            key = (role, state.target[role])
            self.groups.setdefault(key, Workers(*key, desired=0, devices=state.devices_of(role), order=1 << 30))
        self.desired = {key: group.desired for key, group in self.groups.items()}
        self.share_counts = True
        self.cells = cells_of(self.groups.values(), state.pairs | {(state.target[PREFILL], state.target[DECODE])})
        self.changing = frozenset(w.role for w in self.old() if not w.gone or w.desired)
        self.seen = seen(state, rules)
        self.room: Room = room_of(state, rules, self.changing or frozenset(ROLES), self.seen.fits)
        wanted = [role for role in ROLES if state.wanted[role]]
        # A worker of the target that serves with the other pool's present one proves itself alone.
        # Where one pool has the size 0, there is no pair to wait for. Where both have, nothing
        # proves itself: what has never served may still fail, and the old revision come back.
        targets = [self.target(role) for role in wanted or ROLES]
        paired = bool(state.linked) or len(wanted) == 1
        self.proven = all(w.served for w in targets) or (paired and all(w.served or w.ready > 0 for w in targets))

    def target(self, role: str) -> Workers:
        return self.groups[role, self.state.target[role]]

    def old(self, role: str | None = None) -> list[Workers]:
        """Return the workers of other revisions than the target, the newest first."""
        found = [w for w in self.groups.values() if role in (None, w.role) and w.revision != self.state.target[w.role]]
        return sorted(found, key=lambda w: (-w.order, w.key))

    def kept(self, role: str) -> int:
        """Return the number of old workers that the workloads of a role are to have."""
        return sum(self.desired[w.key] for w in self.old(role))

    def limit(self, role: str) -> int:
        """Return the workers of the target that a role may have: less where it makes room."""
        return self.state.wanted[role] - (0 if role in self.changing else self.room.give[role])

    def serving(self) -> dict[WorkersKey, int]:
        return {key: min(group.ready, self.desired[key]) for key, group in self.groups.items()}

    def standing(self) -> Serving:
        return standing(self.serving(), self.cells, self.state.wanted)

    def standing_after(self, change: Change) -> Serving:
        after = {key: min(count, change.get(key, count)) for key, count in self.serving().items()}
        return standing(after, self.cells, self.state.wanted)

    @property
    def quiet(self) -> bool:
        """Whether nothing will change by itself: every pod is ready or finds no room, none leaves,
        and no number changes.
        """
        return all(
            self.desired[key] == group.desired == group.existing
            and group.ready + (group.unscheduled if group.devices.kind in self.room.full else 0) == group.existing
            and group.terminating == 0
            for key, group in self.groups.items()
        )

    # -- workers that come --

    def grow(self, goals: Mapping[str, int]) -> None:
        """Add workers of the target up to `goals`, first to the role that lags behind.

        A role that waits for devices keeps the others from taking them. With `recreate` none comes
        before the last old pod of both roles is gone, whatever the surge.
        """
        if self.rules.recreate and any(w.desired or not w.gone for w in self.old()):
            return
        blocked: set[str] = set()
        reserved: dict[str, int] = {}
        while roles := [r for r in ROLES if r not in blocked and self.desired[self.target(r).key] < goals[r]]:
            role = min(roles, key=lambda r: Fraction(self.desired[self.target(r).key], goals[r]))
            key, devices = self.target(role).key, self.target(role).devices
            everyone = sum(count for k, count in self.desired.items() if k[0] == role)
            if everyone >= self.room.caps[role]:
                blocked.add(role)
            elif not self._fits(key, reserved):
                blocked.add(role)
                reserved[devices.kind] = reserved.get(devices.kind, 0) + devices.count
            else:
                self.desired[key] += 1

    def restore(self, role: str, goal: int) -> None:
        """Add old workers up to `goal`, of the revision that has most of them."""
        main = max(self.old(role), key=lambda w: (w.served, self.desired[w.key]), default=None)
        while main is not None and self.kept(role) < goal:
            if not self._fits(main.key, {}):
                return
            self.desired[main.key] += 1

    def _fits(self, key: WorkersKey, reserved: Mapping[str, int]) -> bool:
        """Return whether there is room for one more worker of a workload."""
        kind = self.groups[key].devices.kind
        after = holding(self.groups, {**self.desired, key: self.desired[key] + 1})
        for other, devices in reserved.items():
            after[other] = after.get(other, 0) + devices
        beyond = sum(max(0, n - self.room.ours[k]) for k, n in after.items() if k != PODS)
        limit = self.rules.surge_gpus
        return after[kind] <= self.room.budget[kind] and (kind == PODS or limit is None or beyond <= limit)

    # -- workers that go --

    def withdraw(self) -> None:
        """Take back new workers that wait for room in a full cluster.

        Otherwise they would take the room that others leave for the role that lags behind.
        """
        for role in ROLES:
            target = self.target(role)
            if target.devices.kind not in self.room.full:
                continue
            placed = target.existing - target.unscheduled
            while self.desired[target.key] > placed and self._too_much(target.devices.kind):
                self.desired[target.key] -= 1

    def _too_much(self, kind: str) -> bool:
        held = sum(
            (self.desired[key] + w.terminating - w.recalled(self.desired[key])) * w.devices.count
            for key, w in self.groups.items()
            if w.devices.kind == kind
        )
        return held > self.room.budget[kind]

    def changes(self, groups: Iterable[Workers]) -> Iterator[Change]:
        """Yield the ways in which one worker less leaves no workers without a partner.

        The last workers of an old revision go together.
        """
        wanted = self.state.wanted
        for group in groups:
            count, cell = self.desired[group.key], self.cells[group.key]
            if count == 0:
                continue
            alone = one_sided(self.desired, self.cells, cell, wanted)
            last = {w.key: 0 for w in self.old() if self.cells[w.key] == cell and self.desired[w.key]}
            for change in ({group.key: count - 1}, last):
                if alone or not one_sided(self.desired | change, self.cells, cell, wanted):
                    yield change
                    break

    def shrink(self, goals: Mapping[str, int]) -> None:
        """Remove old workers until each role has at most `goals` of them, those that serve last."""
        while True:
            found = [
                change
                for change in self.changes(w for w in self.old() if self.kept(w.role) > goals[w.role])
                if self.keeps_floors(change)
                and all(self._left(change, role) >= goals[role] for role in {key[0] for key in change})
            ]
            if not found:
                return
            self.take(found)

    def retire(self) -> None:
        """Remove as many old workers as the floors allow."""
        while found := [change for change in self.changes(self.old()) if self._allowed(change)]:
            self.take(found)

    def take(self, found: list[Change]) -> None:
        """Make the change that costs least; of equal ones that of the newest revision."""
        if not found:
            return
        best = max(found, key=lambda c: (after := self.standing_after(c)).share + sum(after.paired.values()))
        self.desired |= best

    def _left(self, change: Change, role: str) -> int:
        return sum((self.desired | change)[w.key] for w in self.old(role))

    def _allowed(self, change: Change) -> bool:
        if not self.keeps_floors(change):
            return False
        # Old workers that are not ready for a moment go only once new ones are ready instead.
        for role in {key[0] for key in change}:
            target = self.target(role)
            ready = min(target.ready, self.desired[target.key])
            if self._left(change, role) + ready < self.room.floors[role]:
                return False
        return True

    def keeps_floors(self, change: Change) -> bool:
        """Return whether a change leaves what must serve, or takes nothing from what does."""
        floors, wanted = self.room.floors, self.state.wanted
        least = min((Fraction(floors[r], wanted[r]) for r in ROLES if wanted[r]), default=Fraction(0))
        now, after = self.standing(), self.standing_after(change)
        if not self.share_counts:
            least = Fraction(0)
        return after.share >= min(least, now.share) and all(
            after.paired[r] >= min(floors[r], now.paired[r]) for r in ROLES
        )
