"""What is written down of a canary, and read again."""

from __future__ import annotations

import pytest

from disagg_operator.rollout.canary_record import FAILED, CanaryRecord, read_record


@pytest.mark.parametrize("record", [CanaryRecord(), CanaryRecord("2026-01-01T00:00:00Z", FAILED, "100/600", "words")])
def test_a_record_is_read_as_it_was_written(record: CanaryRecord) -> None:
    assert read_record(record.text()) == record


def test_a_long_message_is_cut() -> None:
    found = read_record(CanaryRecord(message="x" * 5000).text())
    assert found is not None
    assert len(found.message) == 512


@pytest.mark.parametrize("text", [None, "", "[]", "yes", "5", '{"since"'])
def test_what_is_not_readable_is_none(text: str | None) -> None:
    assert read_record(text) is None
