"""Tests that nobody can write lines of the log but the process itself."""

from __future__ import annotations

import io
import logging

import pytest

from disagg_wire.log_lines import LogFormatter, one_record


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e4\u00f6\U0001f600\ttext", "plain \u00e4\u00f6\U0001f600\ttext"),
        ("a\n2026-12-01 ERROR forged", "a\n  | 2026-12-01 ERROR forged"),
        ("a\r\x1b[2Jb\x00\x9b\u2028", "a\\x0d\\x1b[2Jb\\x00\\x9b\\x2028"),
    ],
)
def test_a_record_is_one_record(text: str, shown: str) -> None:
    assert one_record(text) == shown


def test_tracebacks_cannot_forge_a_record_either() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter())
    log = logging.Logger("test")
    log.addHandler(handler)
    try:
        raise ValueError("x\n2026-12-01 00:00:00,000 INFO test: forged")
    except ValueError:
        log.exception("request %s failed", "a\nb")
    lines = out.getvalue().splitlines()
    assert len(lines) > 4
    assert all(line.startswith("  | ") for line in lines[1:])
