"""What `disagg rollout` says of a resource, and which revision it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from disagg_operator.cli import rollout_command
from disagg_operator.cli.entry import parser
from disagg_operator.cli.rollout_command import RolloutError
from disagg_operator.rollout.canary_record import FAILED, INCONCLUSIVE, PROMOTED, CanaryRecord
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.vocabulary import UPDATE_RUNTIME


def resource(generation: int = 2, **conditions: tuple[str, str]) -> dict[str, Any]:
    found = [{"type": k, "status": s, "reason": r, "message": f"about {k}"} for k, (s, r) in conditions.items()]
    status = {"observedGeneration": 2, "conditions": found, "revision": {"current": "a", "update": "b"}}
    return {"metadata": {"name": "chat", "generation": generation}, "spec": {}, "status": status}


def revision(number: int, name: str, failed: int | None = None, **spec: Any) -> KnownRevision:
    return KnownRevision(name, number, name, name, failed, "2026-01-01T00:00:00Z", spec)


@pytest.mark.parametrize(
    ("found", "ended", "words"),
    [
        (resource(3), None, "waiting for the operator"),
        (resource(Accepted=("False", "InvalidSpec")), False, "InvalidSpec: about Accepted"),
        (resource(Progressing=("True", "RollingOut")), None, "RollingOut: about Progressing"),
        (resource(Progressing=("Unknown", "RolloutPaused")), None, "RolloutPaused: about Progressing"),
        (resource(Progressing=("True", "Canary")), None, "Canary: about Progressing"),
        (resource(Progressing=("Unknown", "CanaryInconclusive")), None, "CanaryInconclusive: about Progressing"),
        (resource(Progressing=("False", "CanaryFailed")), False, "CanaryFailed: about Progressing"),
        (resource(Progressing=("False", "RolledBack")), False, "RolledBack: about Progressing"),
        (resource(Progressing=("True", "RolloutComplete")), True, "RolloutComplete: about Progressing"),
        ({"metadata": {"generation": 1}}, None, "waiting for the operator"),
    ],
)
def test_a_rollout_ends_well_or_badly_or_goes_on(found: dict[str, Any], ended: bool | None, words: str) -> None:
    assert rollout_command.state_of(found) == (ended, words)


def asked(value: str, carried_out: str, update: str = "") -> dict[str, Any]:
    found = resource(Progressing=("True", "RolloutComplete"), RuntimeUpToDate=("False" if update else "True", "x"))
    found["metadata"]["annotations"] = {UPDATE_RUNTIME: value}
    found["status"]["runtimeRequest"] = carried_out
    found["status"]["conditions"][1]["message"] = update
    return found


@pytest.mark.parametrize(
    ("found", "ended", "words"),
    [
        (asked("b", "a"), None, "waiting for the operator to move the runtime"),
        (asked("b", "", "w:1 -> w:2 (refused: x)"), None, "waiting for the operator to move the runtime: w:1 -> w:2 ("),
        (asked("b", "b"), True, "RolloutComplete: "),
        (asked("b", "b", "w:2 -> w:3"), True, "RolloutComplete: "),
        (asked("", "b"), True, "RolloutComplete: "),
        (asked("b" * 300, "b" * 256), True, "RolloutComplete: "),
    ],
)
def test_a_move_of_the_runtime_that_is_asked_for_is_waited_for(found: dict[str, Any], ended: bool, words: str) -> None:
    state = rollout_command.state_of(found)
    assert state[0] is ended
    assert state[1].startswith(words)


def test_undo_takes_the_revision_before_or_the_one_that_is_named() -> None:
    known = [revision(1, "a"), revision(4, "b")]
    assert rollout_command.chosen(known, None).number == 1
    assert rollout_command.chosen(known, 4).name == "b"
    with pytest.raises(RolloutError, match="no revision 2; there are: 1, 4"):
        rollout_command.chosen(known, 2)
    with pytest.raises(RolloutError, match="no earlier revision"):
        rollout_command.chosen(known[:1], None)


def test_undo_takes_no_revision_whose_canary_failed_or_was_left_unless_it_is_named() -> None:
    first, left, failed, newest = (revision(n, name) for n, name in enumerate("abcd", 1))
    first = replace(first, canary=CanaryRecord("t", PROMOTED))
    left, failed = replace(left, canary=CanaryRecord()), replace(failed, canary=CanaryRecord("t", FAILED))
    known = [first, left, failed, replace(newest, canary=CanaryRecord("t", INCONCLUSIVE))]
    assert rollout_command.chosen(known, None) is first
    assert rollout_command.chosen(known, 3) is failed
    assert rollout_command.chosen(known[1:], None) is failed


def test_the_history_says_what_changed_and_what_runs() -> None:
    known = [revision(1, "a", model={"uri": "x"}), revision(2, "b", failed=2, model={"uri": "y"})]
    console = Console(width=160, record=True)
    console.print(rollout_command.table(resource(), known))
    lines = console.export_text().splitlines()
    assert lines[1].split()[:2] == ["1", "a"]
    assert "current" in lines[1]
    assert lines[2].split()[-3:] == ["update,", "failed", "model.uri"]


@pytest.mark.parametrize("action", ["status", "history", "undo", "pause", "resume", "restart"])
def test_every_action_names_a_deployment(action: str) -> None:
    found = parser("rollout").parse_args(["rollout", action, "chat", "-n", "ns"])
    assert (found.action, found.name, found.namespace) == (action, "chat", "ns")


def test_only_restart_can_move_the_runtime() -> None:
    found = parser("rollout").parse_args(["rollout", "restart", "--runtime", "chat"])
    assert (found.runtime, found.name) == (True, "chat")
    with pytest.raises(SystemExit):
        parser("rollout").parse_args(["rollout", "undo", "--runtime", "chat"])


def test_only_a_canary_that_waits_is_promoted_by_resume() -> None:
    assert rollout_command.inconclusive(resource(Progressing=("Unknown", "CanaryInconclusive"))) == "b"
    assert rollout_command.inconclusive(resource(Progressing=("True", "Canary"))) == ""
    assert rollout_command.inconclusive({}) == ""
