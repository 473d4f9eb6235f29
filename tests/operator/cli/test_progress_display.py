"""What a command says while it works, on a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from disagg_operator.cli.progress_display import ProgressDisplay


def told(terminal: bool) -> str:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, force_terminal=terminal, width=80)) as working:
        working.reach(0.5)  # of nothing
        working.say("reading [t.csv]")
        working.reach(0.5)
        working.say("serving")
        working.reach(2.0)
    return out.getvalue()


def test_in_a_log_each_step_is_a_line_without_control_characters() -> None:
    assert told(False) == "reading [t.csv] ...\nserving ...\n"


def test_on_a_terminal_a_bar_moves_and_goes_away() -> None:
    out = told(True)
    assert "reading" in out
    assert out.endswith("\x1b[2K")  # the line is erased
