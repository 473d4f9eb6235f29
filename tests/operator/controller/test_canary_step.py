"""The canary as one run finds it: when there is one, what it says, and what it writes down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.controller.canary_step import (
    Circumstances,
    Trial,
    labelled,
    to_write,
    told,
    trial_of,
    without_given_up,
    written,
)
from disagg_operator.rollout import telling
from disagg_operator.rollout.canary_record import (
    FAILED,
    INCONCLUSIVE,
    PROMOTE_ANNOTATION,
    PROMOTED,
    CanaryRecord,
    rules_text,
)
from disagg_operator.rollout.canary_reports import CanaryReports, noted
from disagg_operator.rollout.canary_verdict import Comparison, Counts
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.rollout.values import RolloutPlan, RolloutState, Workers
from disagg_wire.canary import CanaryWord, name_of, read_word

SINCE, NOW = "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z"
COMPARED_BY = "100 requests at 10 % within 1.0 and 0.06 s"
RULES = rules_text(COMPARED_BY, 3600)
BEGUN = CanaryRecord(SINCE, rules=RULES)
MODEL = {"uri": "file:///models/m"}
WAITS = CanaryRecord(SINCE, INCONCLUSIVE, RULES)


def revision(name: str, number: int, record: CanaryRecord | None = None, **model: Any) -> KnownRevision:
    return KnownRevision(name, number, f"p{name}", f"d{name}", None, "", {"model": MODEL | model}, record)


def workers(name: str, count: int = 2, **changes: Any) -> list[Workers]:
    options = {"desired": count, "existing": count, "ready": count, "served": True} | changes
    return [Workers("prefill", f"p{name}", **options), Workers("decode", f"d{name}", **options)]


def state(*found: Workers, wanted: int = 2, target: str = "2") -> RolloutState:
    sizes = {"prefill": wanted, "decode": wanted}
    return RolloutState(tuple(found), {"prefill": f"p{target}", "decode": f"d{target}"}, sizes, now_s=1e9)


OLD, NEW = workers("1"), workers("2", 1, served=False)


def found(
    record: CanaryRecord | None = None,
    seen: RolloutState | None = None,
    *,
    back: bool = False,
    asked: bool = False,
    known: list[KnownRevision] | None = None,
    rollout: dict[str, Any] | None = None,
    reports: CanaryReports | None = None,
    **spec: Any,
) -> Trial:
    """Return the trial of revision 2, whose record is given."""
    known = [revision("1", 1), revision("2", 2, record)] if known is None else known
    dd = parse(good(rollout={"canary": {}} if rollout is None else rollout, **spec))
    annotations = {PROMOTE_ANNOTATION: "2"} if asked else {}
    resource = {"metadata": {"annotations": annotations}}
    mine = next((r for r in known if r.name == "2"), None)
    seen = state(*OLD, *NEW) if seen is None else seen
    return trial_of(dd, resource, known, mine, known[0] if back else None, seen, reports or CanaryReports())


@pytest.mark.parametrize(
    ("what", "trial", "tried"),
    [
        ("the first look", found(known=[revision("1", 1)]), True),
        ("before the first pair", found(), True),
        ("after it", found(BEGUN), True),
        ("none is declared", found(BEGUN, rollout={}), False),
        ("it was promoted", found(replace(BEGUN, verdict=PROMOTED)), False),
        ("a person has promoted it", found(BEGUN, asked=True), False),
        ("a person has promoted it beforehand", found(asked=True), False),
        ("it waits for a person", found(WAITS), True),
        ("it has failed and is back", found(replace(BEGUN, verdict=FAILED), back=True), False),
        ("it has failed and the spec was edited", found(replace(BEGUN, verdict=FAILED), state(*OLD, *workers("2"))),
         True),
        ("nothing is replaced", found(None, state(*NEW)), False),
        ("a pool has the size 0", found(BEGUN, state(*OLD, *NEW, wanted=0)), False),
        ("the old ones do not serve", found(None, state(*workers("1", ready=0), *NEW)), False),
        ("the old ones do not serve for a moment", found(BEGUN, state(*workers("1", ready=0), *NEW)), True),
        ("it was left in the middle and is declared again", found(CanaryRecord(), state(*OLD, *workers("2"))), True),
        ("it has served before there was a canary", found(None, state(*OLD, *workers("2"))), False),
        ("another name", found(model={"uri": "file:///models/m", "name": "n"}), False),
    ],
)  # fmt: skip
def test_when_a_revision_is_tried(what: str, trial: Trial, tried: bool) -> None:
    assert (trial.percent == 10) is tried
    assert {word.revision for word in trial.words.values()} == ({"p2", "d2"} if tried else set())


def test_a_revision_that_was_given_up_gets_nothing_unless_nothing_else_serves() -> None:
    known = [revision("1", 1), revision("3", 2, BEGUN), revision("2", 3)]
    everyone = state(*OLD, *workers("3", 1), *NEW)
    trial = found(None, everyone, known=known)
    assert {role: word.left for role, word in trial.words.items()} == {"prefill": ("p3",), "decode": ("d3",)}
    marked = {w.key for w in without_given_up(everyone, trial).workers if w.given_up}
    assert marked == {("prefill", "p3"), ("decode", "d3")}
    # The same after a revert, and without a canary.
    cases: list[dict[str, Any]] = [{"back": True}, {"rollout": {}}]
    for options in cases:
        left = found(None, everyone, known=known, **options).words
        assert left == {"prefill": CanaryWord(0, left=("p3",)), "decode": CanaryWord(0, left=("d3",))}
    alone = found(None, state(*workers("3", 1)), known=known, rollout={})
    assert alone.words == {}


def test_what_finds_no_room_in_the_label_counts_as_given_up_for_nobody() -> None:
    """The routers go on to send requests there, so that the planner must not think otherwise."""
    names = [f"{n}aaaaaaaa" for n in range(1, 6)]
    known = [revision("0", 1), *(revision(name, n, BEGUN) for n, name in enumerate(names, 2)), revision("2", 9)]
    everyone = state(*workers("0"), *(w for name in names for w in workers(name, 1)), *NEW)
    trial = found(None, everyone, known=known)
    told = {role: read_word(word.text()) for role, word in trial.words.items()}
    assert told == trial.words
    marked = {w.key for w in without_given_up(everyone, trial).workers if w.given_up}
    assert marked == {(role, revision) for role, word in trial.words.items() for revision in word.left}
    assert ("decode", "d5aaaaaaaa") in marked  # the newest first
    assert ("decode", "d1aaaaaaaa") not in marked


def name(trial: Trial) -> str:
    """Return the name under which the routers count."""
    return name_of(trial.words)


OTHER_RULES: list[dict[str, Any]] = [
    {"rollout": {"canary": {"weight": 20}}},
    {"rollout": {"canary": {"minRequests": 50}}},
    {"rollout": {"canary": {"analysis": {"ttftSeconds": {"p99": 2}}}}},
    {"rollout": {"canary": {"analysis": {"tpotSeconds": {"p99": 0.05}}}}},
    {"objectives": {"ttftSeconds": {"p99": 2}}},
]


@pytest.mark.parametrize("spec", OTHER_RULES)
@pytest.mark.parametrize("record", [BEGUN, WAITS])
def test_by_other_rules_the_canary_begins_anew(spec: dict[str, Any], record: CanaryRecord) -> None:
    trial = found(record, **spec)
    assert name(trial) != name(found(record))
    for evidence in (ALIKE, WORSE, FEW):
        written_ = to_write(replace(trial, seen=evidence), revision("2", 2, record), plan(), LATE)
        assert written_ == CanaryRecord(LATE.now, rules=trial.rules_text)
    assert to_write(trial, revision("2", 2, record), plan(), replace(LATE, paused=True)) is None


def test_the_routers_count_anew_when_a_canary_begins_and_not_when_it_may_last_longer() -> None:
    longer = {"canary": {"maxDurationSeconds": 7200}}
    assert name(found(BEGUN, rollout=longer)) == name(found(BEGUN)) == name(found(WAITS))
    again = CanaryRecord(NOW, rules=RULES)
    assert len({name(found()), name(found(BEGUN)), name(found(again))}) == 3


def test_only_what_was_counted_of_this_trial_is_looked_at() -> None:
    states = [
        {"incarnation": str(n), "canary": {"revision": told, "through": 9, "minutes": [[9, n, n, 9, 9]]}}
        for n, told in enumerate((name(found()), name(found(BEGUN)), "d2-p2"), 1)
    ]
    reports = noted(CanaryReports(), states)
    assert found(BEGUN, reports=reports).seen.new == Counts(2, 2)
    assert found(reports=reports).seen == Comparison()


def test_the_words_stand_on_the_services_of_the_pools() -> None:
    def obj(kind: str, pool: str) -> dict[str, Any]:
        return {"kind": kind, "metadata": {"labels": {"disagg.dev/pool": pool}}}

    objects = [obj("Service", "prefill"), obj("Deployment", "prefill"), obj("Service", "router")]
    out = labelled(objects, {"prefill": CanaryWord(10, "p2")})
    assert [o["metadata"]["labels"].get("disagg.dev/canary") for o in out] == ["10.rp2", None, None]
    assert "disagg.dev/canary" not in objects[0]["metadata"]["labels"]


def plan(reason: str = telling.ROLLING_OUT, **changes: Any) -> RolloutPlan:
    return RolloutPlan({}, reason, "counts", **{"proven": True, **changes})


def seen(new: tuple[int, int], old: tuple[int, int]) -> Comparison:
    return Comparison(((*new, *old),))


HERE = Circumstances(declared=True, restorable=True, paused=False, now=NOW)
LATE = replace(HERE, passed_s=7200.0)
ALIKE, WORSE, FEW = seen((100, 99), (900, 891)), seen((100, 70), (900, 891)), seen((5, 5), (900, 891))


@pytest.mark.parametrize(
    ("what", "trial", "plan_", "standing", "verdict"),
    [
        ("the first pair has served", found(), plan(), HERE, ""),
        ("not yet", found(), plan(proven=False), HERE, None),
        ("pools are exchanged", found(), plan(exchanging=True), HERE, None),
        ("it goes on", replace(found(BEGUN), seen=FEW), plan(), HERE, None),
        ("no worse", replace(found(BEGUN), seen=ALIKE), plan(), HERE, PROMOTED),
        ("worse", replace(found(BEGUN), seen=WORSE), plan(), HERE, FAILED),
        ("worse, but nothing to go back to", replace(found(BEGUN), seen=WORSE), plan(),
         replace(HERE, restorable=False), INCONCLUSIVE),
        ("paused", replace(found(BEGUN), seen=WORSE), plan(), replace(HERE, paused=True), None),
        ("too few by the end", replace(found(BEGUN), seen=FEW), plan(), LATE, INCONCLUSIVE),
        ("a person is to decide", replace(found(WAITS), seen=ALIKE), plan(), LATE, None),
        ("for longer", replace(found(replace(WAITS, rules=rules_text(COMPARED_BY, 60))), seen=ALIKE), plan(), LATE,
         PROMOTED),
        ("a person has decided", found(WAITS, asked=True), plan(), LATE, PROMOTED),
        ("it was promoted", found(replace(BEGUN, verdict=PROMOTED)), plan(complete=True), HERE, None),
        ("no canary is declared any more", found(BEGUN, rollout={}), plan(), replace(HERE, declared=False), PROMOTED),
        ("nor of one that has failed", found(replace(BEGUN, verdict=FAILED), rollout={}), plan(),
         replace(HERE, declared=False), PROMOTED),
        ("one that has failed waits for the old ones to serve",
         found(replace(BEGUN, verdict=FAILED), state(*workers("1", ready=0), *NEW)), plan(), HERE, None),
        ("nor does one that was left before",
         found(CanaryRecord(), state(*workers("1", ready=0), *NEW)), plan(), HERE, None),
        ("a rollout without one", found(rollout={}), plan(complete=True), replace(HERE, declared=False), None),
        ("a revision that is there", found(None, state(*NEW)), plan(complete=True), HERE, PROMOTED),
        ("a first revision on its way", found(None, state(*NEW)), plan(), HERE, None),
    ],
)  # fmt: skip
def test_what_is_written_down(
    what: str, trial: Trial, plan_: RolloutPlan, standing: Circumstances, verdict: str | None
) -> None:
    # A record that the trial leaves out is still the one that is stored.
    stored = {"it was promoted": replace(BEGUN, verdict=PROMOTED)}.get(what, trial.record)
    if "failed" in what:
        stored = replace(BEGUN, verdict=FAILED)
    record = to_write(trial, revision("2", 2, stored), plan_, standing)
    assert (None if record is None else record.verdict) == verdict
    if record is not None and record.verdict in (FAILED, INCONCLUSIVE):
        assert "of 100" in record.message
    if record is not None and not record.verdict:
        assert record.since == NOW


@pytest.mark.parametrize(
    ("others", "plan_", "expected"),
    [
        ([], plan(proven=False), ("2", None)),
        ([revision("1", 1, BEGUN)], plan(), ("2", CanaryRecord(NOW, rules=RULES))),  # its own comes first
        ([revision("1", 1, BEGUN)], plan(proven=False), ("1", CanaryRecord())),
        ([revision("0", 1), revision("1", 2, WAITS)], plan(proven=False), ("1", CanaryRecord())),
        ([revision("1", 1, replace(BEGUN, verdict=FAILED))], plan(proven=False), ("2", None)),
        ([revision("1", 1, CanaryRecord())], plan(proven=False), ("2", None)),
        ([revision("1", 1, BEGUN)], plan(proven=False, expired=True), ("2", None)),
    ],
)
def test_the_canary_of_a_revision_that_was_left_begins_anew(
    others: list[KnownRevision], plan_: RolloutPlan, expected: tuple[str, CanaryRecord | None]
) -> None:
    mine = revision("2", 9)
    assert written(found(), mine, [*others, mine], plan_, HERE) == expected


@pytest.mark.parametrize(
    ("trial", "reason", "expected", "begins"),
    [
        (found(BEGUN), telling.ROLLING_OUT, telling.CANARY, "canary: 10 % of the requests, 0 of 100: counts"),
        (found(BEGUN), telling.SWAPPING, telling.CANARY, "canary: "),
        (found(BEGUN), telling.PAUSED, telling.PAUSED, "canary: 10 % of the requests, 0 of 100: counts"),
        (found(BEGUN), telling.STALLED, telling.STALLED, "counts"),
        (found(), telling.WAITING, telling.WAITING, "canary: 10 % of the requests, 0 of 100; the first new pair has"),
        (found(), telling.EXCHANGING, telling.EXCHANGING, "no canary, as an old and a new pair do not fit: counts"),
        (found(WAITS), telling.ROLLING_OUT, telling.CANARY_INCONCLUSIVE, "canary: "),
        (found(rollout={}), telling.ROLLING_OUT, telling.ROLLING_OUT, "counts"),
        (found(model={"uri": "file:///x/n"}), telling.ROLLING_OUT, telling.ROLLING_OUT, "no canary: the model m was"),
    ],
)
def test_what_is_told(trial: Trial, reason: str, expected: str, begins: str) -> None:
    said, message = told(trial, plan(reason))
    assert said == expected
    assert message.startswith(begins)
