"""A process leaves the result of its drain, and whoever reads it takes nothing else for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_wire import termination_log
from disagg_wire.drain_report import cut_of, message_of
from disagg_wire.problems import WorkerProblem, parse_termination_message


@pytest.mark.parametrize("cut", [0, 1, 12_345])
def test_a_message_tells_how_many_requests_were_cut_off(cut: int) -> None:
    assert cut_of(message_of(cut)) == cut
    assert parse_termination_message(message_of(cut)) is None


@pytest.mark.parametrize(
    "text",
    ["", "killed", "{", "[]", "{}", '{"drain": 3}', '{"drain": {}}', '{"drain": {"cut": -1}}',
     '{"drain": {"cut": true}}', '{"drain": {"cut": 1.5}}', '{"drain": {"cut": 99999999999}}', "{" * 100_000,
     WorkerProblem("EngineHung", "it hangs").termination_message()],
)  # fmt: skip
def test_other_texts_are_about_no_drain(text: str) -> None:
    assert cut_of(text) is None


def test_it_is_left_in_the_file_that_the_kubelet_has_made(tmp_path: Path) -> None:
    made = tmp_path / "termination-log"
    termination_log.leave("words", made)
    assert not made.exists()  # no container
    made.touch()
    termination_log.leave("words", made)
    assert made.read_text() == "words"


def test_a_file_that_cannot_be_written_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("full")

    (tmp_path / "log").touch()
    monkeypatch.setattr(Path, "write_text", refuse)
    termination_log.leave("words", tmp_path / "log")
    assert "full" in caplog.text
