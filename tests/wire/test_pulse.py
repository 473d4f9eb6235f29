"""Tests of the beat as a line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.pulse import Beat, parse

_SECONDS = st.floats(0, 1e6).map(lambda s: round(s, 4))


@given(st.builds(Beat, st.integers(0, 1 << 60), st.none() | _SECONDS, _SECONDS, _SECONDS))
def test_a_beat_is_read_as_it_was_written(beat: Beat) -> None:
    assert beat.line().endswith(b"\n")
    assert parse(beat.line()) == beat


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"steps": true, "expected_s": 0, "loop_s": 0}',
        b'{"steps": 1, "step_s": -1, "expected_s": 0, "loop_s": 0}',
        b'{"steps": 1, "expected_s": "0", "loop_s": 0}',
        b'{"steps": 1, "expected_s": 0, "loop_s": NaN}',
        b'{"steps": 1, "expected_s": 0, "loop_s": true}',
        b'{"steps": 1, "expected_s": 0, "loop_s": 1' + b"0" * 400 + b"}",
        b'{"steps": 1, "expected_s": 1e300, "loop_s": 0}',
        b'{"steps": 1, "expected_s": 0, "loop_s": 0}{"steps": 1}',
        b"[" * 1000,
        b'{"a":' * 200,
        b'{"steps": 1, "expected_s": 0, "loop_s": 0, "more": "' + b"x" * 1024 + b'"}',
    ],
)
def test_what_is_no_beat_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse(line)


def test_fields_of_later_releases_are_ignored() -> None:
    assert parse(b'{"steps": 1, "expected_s": 0, "loop_s": 0, "more": []}') == Beat(1)


@given(st.binary(max_size=1100))
def test_any_bytes_are_a_beat_or_refused(line: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(line)
