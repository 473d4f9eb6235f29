"""PURE: The progress of a rollout, its deadline, and what is known of a cluster without room."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from disagg_operator.rollout.room import scheduled
from disagg_operator.rollout.values import Progress, RolloutRules, RolloutState
from disagg_wire.roles import ROLES

# The part of the deadline after which the time of the last progress of a rollout that waits moves.
_WAITING = 0.1
# The least time after which a pod may have got the place of another one.
_LOOK_AGAIN_S = 1.0


def name_of_target(state: RolloutState) -> str:
    """Return one name for the revisions of both roles."""
    return "-".join(dict.fromkeys(state.target[role] for role in ROLES))


def remembered(state: RolloutState) -> Progress | None:
    """Return the progress so far, if it is that of the present target."""
    before = state.progress
    return before if before is not None and before.target == name_of_target(state) else None


@dataclass(frozen=True, slots=True)
class Stock:
    """The known devices of the cluster, by kind."""

    held: Mapping[str, int]
    """The most that pods on nodes have held."""
    full: frozenset[str]
    """The kinds of which there is no more."""

    @property
    def fits(self) -> Mapping[str, int]:
        """The devices of the kinds that are used up."""
        return {kind: self.held[kind] for kind in self.full}


def seen(state: RolloutState, rules: RolloutRules) -> Stock:
    """Return what is known of the cluster's devices.

    A kind is used up once a pod has waited for it for long. What pods have held before fits again,
    so that a pod that is gone makes no difference. If nothing is remembered, such a place may just
    have become free for the pod that waits: the next look tells. What was taken for a gap is none
    if pods still wait for it.
    """
    before = state.progress
    full = set() if before is None else set(before.full)
    held = {} if before is None else dict(before.held)
    for kind, amount in scheduled(state).items():
        held[kind] = max(amount, held.get(kind, 0))
    for kind, most in _bounds(state, rules).items():
        if kind in full:
            held[kind] = min(held[kind], most)
    for w in state.workers:
        kind, since_s = w.devices.kind, w.unschedulable_since_s
        if since_s is None or state.now_s - since_s < rules.full_after_s or kind in full:
            continue
        if before is None or kind not in before.held:
            continue
        full.add(kind)
        # A gap that is too small for one worker may hold a smaller one.
        held[kind] += w.devices.count - 1
    return Stock(held, frozenset(full))


def _bounds(state: RolloutState, rules: RolloutRules) -> dict[str, int]:
    """Return fewer devices of each kind than those that pods hold and have long waited for.

    A kind of which pods come or go now has no bound.
    """
    out: dict[str, int] = {}
    for kind, amount in scheduled(state).items():
        mine = [w for w in state.workers if w.devices.kind == kind]
        if any(w.existing < w.desired or w.terminating for w in mine):
            continue
        waits = [w for w in mine if w.unschedulable_since_s is not None]
        if any(state.now_s - (w.unschedulable_since_s or 0.0) >= rules.full_after_s for w in waits):
            out[kind] = amount + sum(w.unscheduled * w.devices.count for w in waits) - 1
    return out


def room_wait_s(state: RolloutState, rules: RolloutRules, full: Container[str]) -> float | None:
    """Return the seconds until a pod without room means that the cluster is full."""
    waits = [w.unschedulable_since_s for w in state.workers if w.devices.kind not in full]
    first_s = min((since_s for since_s in waits if since_s is not None), default=None)
    return None if first_s is None else max(_LOOK_AGAIN_S, first_s + rules.full_after_s - state.now_s)


def steps_made(state: RolloutState) -> int:
    """Return a number that grows with every step of a rollout.

    A new worker that is on a node, and one that is ready, are steps, and an old pod that is gone.
    """
    new = [w for w in state.workers if w.revision == state.target[w.role]]
    old = [w for w in state.workers if w.revision != state.target[w.role]]
    return sum(w.existing - w.unscheduled + w.ready for w in new) - sum(w.existing + w.terminating for w in old)


def advanced(state: RolloutState, rules: RolloutRules, known: Stock, *, waits: bool) -> Progress:
    """Return the progress after this look. While a rollout `waits`, its deadline does as well."""
    before, steps = remembered(state), steps_made(state)
    if before is None or steps > before.best:
        return Progress(name_of_target(state), steps, state.now_s, known.held, known.full)
    # Not at every look: each time is a write of the status.
    late = waits and state.now_s - before.since_s > _WAITING * rules.deadline_s
    return Progress(before.target, before.best, state.now_s if late else before.since_s, known.held, known.full)


def expired(state: RolloutState, rules: RolloutRules, progress: Progress | None, *, waits: bool) -> bool:
    """Return whether the deadline has passed.

    It does not while a rollout waits, because it is paused or tries a revision, or while pods still
    drain.
    """
    if progress is None or waits or any(w.terminating for w in state.workers):
        return False
    return state.now_s - last_moved_s(state, progress) > rules.deadline_s


def last_moved_s(state: RolloutState, progress: Progress) -> float:
    """Return when a rollout last got on: by a step, or by what a worker has loaded of its model."""
    return progress.since_s if state.moved_s is None else max(progress.since_s, state.moved_s)
