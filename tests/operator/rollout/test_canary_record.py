"""What is written down of a canary, and read again."""

from __future__ import annotations

import pytest

from disagg_operator.rollout.canary_record import FAILED, CanaryRecord, read_record, rules_text, trial_name

SINCE = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize("record", [CanaryRecord(), CanaryRecord(SINCE, FAILED, rules_text("rules", 600), "words")])
def test_a_record_is_read_as_it_was_written(record: CanaryRecord) -> None:
    assert read_record(record.text()) == record


def test_a_long_message_is_cut() -> None:
    found = read_record(CanaryRecord(message="x" * 5000).text())
    assert found is not None
    assert len(found.message) == 512


@pytest.mark.parametrize("text", [None, "", "[]", "yes", "5", '{"since"'])
def test_what_is_not_readable_is_none(text: str | None) -> None:
    assert read_record(text) is None


def test_the_rules_say_by_what_two_revisions_are_compared_and_for_how_long() -> None:
    assert CanaryRecord(rules=rules_text("100 requests", 86_400)).compared_by == "100 requests"
    assert rules_text("100 requests", 86_400) != rules_text("100 requests", 3600)
    assert CanaryRecord().compared_by == ""


def test_every_trial_has_a_name_of_its_own() -> None:
    names = {trial_name(rules, since) for rules in ("a", "b") for since in ("", SINCE, "2026-01-01T00:00:01Z")}
    assert len(names) == 6
    assert {len(name) for name in names} == {5}
