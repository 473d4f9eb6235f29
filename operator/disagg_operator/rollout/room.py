"""PURE: The room of a rollout: the devices that may be held, and the workers that must make room.

A pod holds its devices until it is gone, also while it terminates. Where there is no room for an
old and a new pair at the same time, some old workers go first: a *swap*. Where not even that leaves
a pair, all old workers go before the new ones come: an *exchange*.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from disagg_operator.rollout.values import PODS, Devices, RolloutRules, RolloutState, Workers
from disagg_wire.roles import ROLES


@dataclass(frozen=True, slots=True)
class Room:
    """What a rollout may use, and what it may take. The mappings are by role or kind of device."""

    budget: Mapping[str, int]
    """Devices that may be held."""
    ours: Mapping[str, int]
    """Devices of the pools' sizes."""
    give: Mapping[str, int]
    """Workers of each role that go before the first new ones come."""
    caps: Mapping[str, int]
    """Workers of all revisions that each role may have."""
    runs: Mapping[str, int]
    """Workers of each role that the cluster can run of those that are wanted."""
    floors: Mapping[str, int]
    """Workers with a partner that each role must keep."""
    full: frozenset[str]
    """The kinds of which the cluster has no more than runs."""
    exchange: bool
    """Whether an old and a new pair never fit at the same time."""
    hopeless: bool
    """Whether the new workers would not fit even if all old ones were gone."""


def scheduled(state: RolloutState) -> dict[str, int]:
    """Return the devices that pods on nodes hold, by kind."""
    out: dict[str, int] = {}
    for w in state.workers:
        held = (w.existing - w.unscheduled + w.terminating) * w.devices.count
        out[w.devices.kind] = out.get(w.devices.kind, 0) + held
    return out


def holding(workers: Mapping[tuple[str, str], Workers], desired: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Return the devices that are held at most until the workloads have these sizes, by kind."""
    out: dict[str, int] = {}
    for key, w in workers.items():
        leaving = w.terminating - w.recalled(desired[key])
        held = (max(w.existing, w.desired, desired[key]) + leaving) * w.devices.count
        out[w.devices.kind] = out.get(w.devices.kind, 0) + held
    return out


def room_of(state: RolloutState, rules: RolloutRules, changing: frozenset[str], fits: Mapping[str, int]) -> Room:
    """Return the room of a rollout in which the roles in `changing` get new workers."""
    old = {role: _old_devices(state, role) for role in ROLES}
    new = {role: state.devices_of(role) for role in ROLES}
    kinds = {d.kind for d in (*old.values(), *new.values())}
    ours = {kind: max(_held(kind, state.wanted, old), _held(kind, state.wanted, new)) for kind in kinds}
    need = {kind: sum(new[r].count for r in changing if new[r].kind == kind) for kind in kinds}
    allowed = {kind: ours[kind] + _held(kind, rules.surge, new) for kind in kinds}
    surge = {kind: 0 if kind in fits else _held(kind, rules.surge, new) for kind in kinds}
    spare = {kind: 0 if kind in fits else surge[kind] + ours[kind] - _held(kind, state.wanted, old) for kind in kinds}
    runs = {role: _runs(role, old, state.wanted, fits) for role in ROLES}
    # Workers that are wanted and do not run have nothing to give.
    give = _give(_Need(need, spare, rules.surge_gpus), old, runs, {r for r in changing if rules.surge[r] == 0})
    taken = give or dict.fromkeys(ROLES, 0)
    return Room(
        budget={kind: min(fits.get(kind, most), most) for kind, most in allowed.items()},
        ours=ours,
        give=taken,
        # A role that cannot give room itself has one more worker for a while.
        caps={
            role: state.wanted[role]
            + max(0 if new[role].kind in fits else rules.surge[role], int(role in changing and not taken[role]))
            for role in ROLES
        },
        runs=runs,
        floors={
            role: min(runs[role], max(1, runs[role] - max(rules.unavailable[role], taken[role]))) for role in ROLES
        },
        full=frozenset(fits),
        exchange=rules.recreate or give is None,
        hopeless=any(amount > fits.get(kind, amount) for kind, amount in need.items()),
    )


def _old_devices(state: RolloutState, role: str) -> Devices:
    found = [w.devices for w in state.workers if w.role == role and w.revision != state.target[role] and w.desired]
    return min(found, key=lambda d: d.count, default=state.devices_of(role))


def _held(kind: str, counts: Mapping[str, int], devices: Mapping[str, Devices]) -> int:
    return sum(counts[role] * devices[role].count for role in ROLES if devices[role].kind == kind)


def _runs(role: str, devices: Mapping[str, Devices], wanted: Mapping[str, int], fits: Mapping[str, int]) -> int:
    """Return the workers of a role that the cluster can run of those that are wanted."""
    kind = devices[role].kind
    ours = _held(kind, wanted, devices)
    if ours <= fits.get(kind, ours):
        return wanted[role]
    return wanted[role] * fits[kind] // ours


@dataclass(frozen=True, slots=True)
class _Need:
    """The devices of a new pair and the room beyond the old workers, by kind."""

    need: Mapping[str, int]
    spare: Mapping[str, int]
    surge_gpus: int | None

    def met_by(self, freed: Mapping[str, int]) -> bool:
        """Return whether a new pair has room once so many devices are free."""
        beyond = {kind: max(0, amount - freed[kind]) for kind, amount in self.need.items()}
        if any(amount > self.spare[kind] for kind, amount in beyond.items()):
            return False
        gpus = sum(amount for kind, amount in beyond.items() if kind != PODS)
        return self.surge_gpus is None or gpus <= self.surge_gpus


def _give(
    need: _Need, old: Mapping[str, Devices], runs: Mapping[str, int], fixed: Container[str]
) -> dict[str, int] | None:
    """Return the fewest old workers of each role that make room for a new pair.

    A role in `fixed` may not grow, so that it makes room itself if it has more than one worker.
    Returns None if no old pair would be left.
    """
    most = sum(need.need.values())
    ranges = []
    for role in ROLES:
        spare = max(0, runs[role] - 1)
        least = min(spare, int(role in fixed))
        ranges.append(range(least, max(least, min(spare, -(-most // max(1, old[role].count)))) + 1))
    best: tuple[Fraction, int, dict[str, int]] | None = None
    for counts in product(*ranges):
        given = dict(zip(ROLES, counts, strict=True))
        if not need.met_by({kind: _held(kind, given, old) for kind in need.need}):
            continue
        left = min((Fraction(runs[r] - given[r], runs[r]) for r in ROLES if runs[r]), default=Fraction(1))
        if best is None or (left, -sum(counts)) > (best[0], best[1]):
            best = left, -sum(counts), given
    return None if best is None else best[2]
