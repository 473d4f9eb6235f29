"""PURE: The words for the state of a rollout: the reason and the message of `Progressing`."""

from __future__ import annotations

from dataclasses import dataclass

from disagg_operator.rollout.progress import name_of_target
from disagg_operator.rollout.room import Room
from disagg_operator.rollout.values import RolloutRules, RolloutState
from disagg_wire.roles import ROLES

COMPLETE, ROLLING_OUT, PAUSED = "RolloutComplete", "RollingOut", "RolloutPaused"
WAITING, SWAPPING, EXCHANGING = "WaitingForCapacity", "MakingRoom", "ExchangingPools"
CANARY, CANARY_INCONCLUSIVE, CANARY_FAILED = "Canary", "CanaryInconclusive", "CanaryFailed"
INSUFFICIENT, STALLED, ROLLED_BACK = "InsufficientCapacity", "ProgressDeadlineExceeded", "RolledBack"


@dataclass(frozen=True, slots=True)
class Stage:
    """The progress of a rollout."""

    done: bool
    proven: bool
    late: bool


def words(state: RolloutState, rules: RolloutRules, room: Room, stage: Stage) -> tuple[str, str]:
    """Return the reason and the message of `Progressing`."""
    counts = _counts(state)
    if stage.done:
        return COMPLETE, "all pods are of the present revision and ready"
    if stage.late:
        return STALLED, f"no progress for {rules.deadline_s:.0f} s: {counts}"
    old = any(w.revision != state.target[w.role] and not w.gone for w in state.workers)
    if rules.paused and old:
        return PAUSED, f"spec.rollout.paused is set: {counts}"
    if not old:
        return ROLLING_OUT, counts
    waits = any(w.unschedulable_since_s is not None for w in state.workers)
    if room.hopeless:
        return INSUFFICIENT, f"the new workers need more devices than the old ones leave: {counts}"
    if room.exchange:
        why = "spec.rollout.strategy is Recreate" if rules.recreate else "there is no room for an old and a new pair"
        return EXCHANGING, (
            f"{why}: both pools are exchanged at once, and the routers hold the requests meanwhile: {counts}"
        )
    if any(room.give.values()):
        fewer = " and ".join(f"{room.give[r]} {r}" for r in ROLES if room.give[r])
        return SWAPPING, f"no room beyond the present workers: {fewer} of them make room for new ones: {counts}"
    if waits:
        return WAITING, (
            f"no node has room for a new worker; after {rules.full_after_s:.0f} s old ones make room, and where no "
            f"second pair fits, both pools are exchanged at once: {counts}"
        )
    if not stage.proven and state.linked is None:
        return ROLLING_OUT, f"no router has reported lately whether the new pair moves KV: {counts}"
    return ROLLING_OUT, counts


def _counts(state: RolloutState) -> str:
    parts = []
    for role in ROLES:
        ready = sum(w.ready for w in state.workers if (w.role, w.revision) == (role, state.target[role]))
        old = sum(w.existing for w in state.workers if w.role == role and w.revision != state.target[role])
        leaving = sum(w.terminating for w in state.workers if w.role == role)
        part = f"{role} {ready} of {state.wanted[role]} ready"
        part += f", {old} old" if old else ""
        part += f", {leaving} leaving" if leaving else ""
        parts.append(part)
    return f"revision {name_of_target(state)}: {'; '.join(parts)}"
