"""PURE: The canary of a rollout: whether there is one, what the routers are told, and its verdict.

It is level-based. A canary begins when the first new pair has served, which is written down before
anything else follows from it. A verdict is carried out by the run after the one that wrote it down.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.rollout import CanarySpec
from disagg_operator.kube.resources import SERVICE, annotations_of, labels_of
from disagg_operator.rollout import canary_verdict, telling
from disagg_operator.rollout.canary_record import (
    FAILED,
    INCONCLUSIVE,
    PROMOTE_ANNOTATION,
    PROMOTED,
    CanaryRecord,
    rules_text,
    trial_name,
)
from disagg_operator.rollout.canary_reports import CanaryReports
from disagg_operator.rollout.canary_verdict import CanaryRules, Comparison
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.rollout.values import RolloutPlan, RolloutState, Workers
from disagg_operator.vocabulary import Obj
from disagg_wire.canary import CanaryWord, name_of
from disagg_wire.labels import LABEL_CANARY, LABEL_POOL
from disagg_wire.roles import ROLES

Words = Mapping[str, CanaryWord]


@dataclass(frozen=True, slots=True)
class Trial:
    """The canary as one run of the reconciler finds it."""

    spec: CanarySpec | None = None
    """How the revision is tried; None if it is not."""
    words: Words = field(default_factory=dict)
    """What the routers are told, by pool."""
    record: CanaryRecord | None = None
    """What is written down of it."""
    seen: Comparison = field(default_factory=Comparison)
    no_canary: str = ""
    """Why there is none although one is declared."""
    asked: bool = False
    """Whether a person has promoted the revision."""
    compared_by: str = ""
    """The rules by which the two revisions are compared."""

    @property
    def percent(self) -> int | None:
        """The percentage at which the rollout stays."""
        return None if self.spec is None else self.spec.weight

    @property
    def begun(self) -> bool:
        return self.record is not None and bool(self.record.since)

    @property
    def rules(self) -> CanaryRules:
        assert self.spec is not None
        return CanaryRules(self.spec.min_requests, float(self.spec.max_duration_seconds))

    @property
    def rules_text(self) -> str:
        return rules_text(self.compared_by, self.rules.max_duration_s)

    @property
    def inconclusive(self) -> bool:
        """Whether it waits for a person. It goes on once other rules are declared."""
        record = self.record
        return record is not None and record.verdict == INCONCLUSIVE and record.rules == self.rules_text


def trial_of(
    dd: DisaggDeployment,
    resource: Obj,
    known: Sequence[KnownRevision],
    mine: KnownRevision | None,
    back: KnownRevision | None,
    state: RolloutState,
    reports: CanaryReports,
) -> Trial:
    """Return the canary of the declared revision `mine`, which is not known before its first run.

    `back` is the revision to which a rollout has gone back, `state` the state of the rollout.
    """
    left = _left_of(known, state)
    stored = None if mine is None else mine.canary
    # After an edit of the spec, a revision that has failed is tried again.
    record = None if stored is not None and stored.verdict == FAILED else stored
    spec, changing = dd.spec.rollout.canary, _changing(state)
    asked = mine is not None and annotations_of(resource).get(PROMOTE_ANNOTATION) == mine.name
    applies = back is None and not asked and _applies(changing, state, record, again=stored is not None)
    if not applies or spec is None:
        return Trial(None, _words(None, (), state, left), record, asked=asked)
    if other := _other_name(dd, known, state):
        why = f"no canary: the model {other} was served before, and requests choose by name"
        return Trial(None, _words(None, (), state, left), record, no_canary=why)
    objectives = spec.analysis or dd.spec.objectives
    ttft_s, tpot_s = objectives.ttft_seconds.p99, objectives.tpot_seconds.p99
    compared_by = f"{spec.min_requests} requests at {spec.weight} % within {ttft_s} and {tpot_s} s"
    since = "" if record is None else record.since
    # The routers count each trial by itself: nothing from before it began, or by other rules.
    word = CanaryWord(spec.weight, "", (), ttft_s, tpot_s, trial_name(compared_by, since))
    words = _words(word, tuple(changing), state, left)
    seen = reports.evidence(name_of(words)) if since else Comparison()
    return Trial(spec, words, record, seen, compared_by=compared_by)


def without_given_up(state: RolloutState, trial: Trial) -> RolloutState:
    """Return the state in which the workers that get no requests any more are known as such."""
    return replace(
        state,
        workers=tuple(
            replace(w, given_up=True) if (word := trial.words.get(w.role)) and w.revision in word.left else w
            for w in state.workers
        ),
    )


def _changing(state: RolloutState) -> dict[str, list[Workers]]:
    """Return the old workers of each role that gets new ones."""
    out: dict[str, list[Workers]] = {}
    for w in state.workers:
        if w.revision != state.target[w.role] and (w.desired or not w.gone):
            out.setdefault(w.role, []).append(w)
    return out


def _applies(
    changing: Mapping[str, list[Workers]], state: RolloutState, record: CanaryRecord | None, *, again: bool
) -> bool:
    if not changing or not all(state.wanted.values()) or (record is not None and record.verdict == PROMOTED):
        return False
    if record is not None and record.since:
        return True
    # It has not begun: there must be something to compare with, and something to try.
    if not all(any(w.ready and w.desired for w in old) for old in changing.values()):
        return False
    groups = {w.key: w for w in state.workers}
    served = [(group := groups.get((role, state.target[role]))) is not None and group.served for role in ROLES]
    return again or not all(served)


def _left_of(known: Sequence[KnownRevision], state: RolloutState) -> dict[str, tuple[str, ...]]:
    """Return the revisions of each role that were given up while they were tried, newest first.

    They get no requests while others serve.
    """
    out: dict[str, tuple[str, ...]] = {}
    for role in ROLES:
        kept = {r.of(role) for r in known if not r.given_up}
        kept.add(state.target[role])
        here = {w.revision: w for w in state.workers if w.role == role and not w.gone}
        given_up = [r.of(role) for r in reversed(known) if r.of(role) in here and r.of(role) not in kept]
        if any(w.ready for revision, w in here.items() if revision not in given_up):
            out[role] = tuple(dict.fromkeys(given_up))
    return out


def _words(
    word: CanaryWord | None, roles: Sequence[str], state: RolloutState, left: Mapping[str, tuple[str, ...]]
) -> Words:
    out = {}
    for role in ROLES:
        if word is not None and role in roles:
            out[role] = replace(word, revision=state.target[role], left=left.get(role, ())).fitted()
        elif left.get(role):
            out[role] = CanaryWord(0, left=left[role]).fitted()
    return out


def _other_name(dd: DisaggDeployment, known: Sequence[KnownRevision], state: RolloutState) -> str:
    """Return the name of the model that the old workers serve, if it is another one."""
    old = {w.key for w in state.workers if w.revision != state.target[w.role] and w.ready}
    for revision in known:
        if any((role, revision.of(role)) in old for role in ROLES) and revision.model_name != dd.spec.model.served_name:
            return revision.model_name
    return ""


def labelled(objects: Sequence[Obj], words: Words) -> list[Obj]:
    """Return the objects, with what the routers are told on the Services of the pools."""
    out = []
    for obj in objects:
        word = words.get(labels_of(obj).get(LABEL_POOL, "")) if obj["kind"] == SERVICE.kind else None
        if word is not None:
            obj = copy.deepcopy(obj)
            obj["metadata"]["labels"][LABEL_CANARY] = word.text()
        out.append(obj)
    return out


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What decides, beside the canary itself, whether something is written down."""

    declared: bool
    """Whether the spec declares a canary."""
    restorable: bool
    """Whether there is a revision to go back to."""
    paused: bool
    now: str
    passed_s: float = 0.0
    """For how long the revision has been tried."""


def to_write(trial: Trial, mine: KnownRevision, found: RolloutPlan, here: Circumstances) -> CanaryRecord | None:
    """Return what is to be written down of the declared revision now, or None."""
    record = trial.record
    if trial.spec is None:
        return _let_go_on(trial, mine, found, here)
    if record is None or not record.since:
        begins = found.proven and not found.exchanging
        return CanaryRecord(since=here.now, rules=trial.rules_text) if begins else None
    if here.paused or trial.inconclusive:
        return None
    if record.compared_by != trial.compared_by:
        return CanaryRecord(since=here.now, rules=trial.rules_text)
    verdict = canary_verdict.verdict(trial.seen, trial.rules, here.passed_s)
    message = canary_verdict.words_of(trial.seen, trial.rules, trial.spec.weight)
    if verdict == canary_verdict.CONTINUE:
        return None
    if verdict == canary_verdict.PROMOTE:
        return CanaryRecord(record.since, PROMOTED, message=message)
    if verdict == canary_verdict.REVERT and here.restorable:
        return CanaryRecord(record.since, FAILED, message=message)
    return CanaryRecord(record.since, INCONCLUSIVE, trial.rules_text, message)


def written(
    trial: Trial, mine: KnownRevision, known: Sequence[KnownRevision], found: RolloutPlan, here: Circumstances
) -> tuple[str, CanaryRecord | None]:
    """Return the name of a revision, and what is to be written down of it now, or None.

    It is the declared revision, or one that was left while it was tried: its canary begins anew if
    it is declared again.
    """
    record = to_write(trial, mine, found, here)
    if record is None and not found.expired:
        for revision in known:
            then = revision.canary
            if revision != mine and then is not None and then.since and then.verdict in ("", INCONCLUSIVE):
                return revision.name, CanaryRecord()
    return mine.name, record


def _let_go_on(trial: Trial, mine: KnownRevision, found: RolloutPlan, here: Circumstances) -> CanaryRecord | None:
    """Return the record of a revision that is not tried, or not any more.

    It is not tried again later, and counts as one to go back to.
    """
    stored = mine.canary
    if stored is not None and stored.verdict == PROMOTED:
        return None
    over = trial.asked or (found.complete and found.proven and (here.declared or stored is not None))
    if stored is not None and not (here.declared and (stored.verdict == FAILED or not stored.since)):
        over = True
    return CanaryRecord("" if stored is None else stored.since, PROMOTED) if over else None


def told(trial: Trial, found: RolloutPlan) -> tuple[str, str]:
    """Return the reason and the message of `Progressing`."""
    reason, message = found.reason, found.message
    if trial.no_canary:
        return reason, f"{trial.no_canary}: {message}"
    if trial.spec is None:
        return reason, message
    if reason == telling.EXCHANGING:
        return reason, f"no canary, as an old and a new pair do not fit: {message}"
    if reason not in (telling.ROLLING_OUT, telling.PAUSED, telling.SWAPPING, telling.WAITING):
        return reason, message
    words = canary_verdict.words_of(trial.seen, trial.rules, trial.spec.weight)
    if not trial.begun:
        return reason, f"{words}; the first new pair has not served yet: {message}"
    if reason == telling.PAUSED:
        return reason, f"{words}: {message}"
    if trial.inconclusive:
        return telling.CANARY_INCONCLUSIVE, (
            f"{words}, and maxDurationSeconds have passed; `disagg rollout resume` goes on with the new revision, "
            f"`disagg rollout undo` goes back: {message}"
        )
    return telling.CANARY, f"{words}: {message}"
