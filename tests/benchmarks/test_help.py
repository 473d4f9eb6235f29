"""Tests that each benchmark prints its options."""

from __future__ import annotations

from types import ModuleType

import pytest
from benchmarks.autoscaling import run as autoscaling
from benchmarks.autoscaling import scenarios
from benchmarks.validation import run as validation


@pytest.mark.parametrize("module", [autoscaling, scenarios, validation])
def test_help_can_be_printed(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert (ended.value.code, "usage:" in capsys.readouterr().out) == (0, True)
