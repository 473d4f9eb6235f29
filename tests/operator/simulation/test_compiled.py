"""Compiled code is never older than any of the sources that it was made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from disagg_operator.simulation import compiled

CALLEE = "from compiled import njit\n\n@njit\ndef answer():\n    return {}\n"
CALLER = (
    "from compiled import njit\nfrom callee import answer\n\n@njit\ndef ask():\n    return answer()\n\nprint(ask())\n"
)


@pytest.mark.slow
def test_a_caller_in_another_file_is_compiled_again(tmp_path: Path) -> None:
    shutil.copy(compiled.__file__, tmp_path / "compiled.py")
    (tmp_path / "caller.py").write_text(CALLER)
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def answers(n: int) -> str:
        (tmp_path / "callee.py").write_text(CALLEE.format(n))
        done = subprocess.run(
            [sys.executable, "-B", "caller.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout.strip()

    assert [answers(11), answers(11), answers(22)] == ["11", "11", "22"]
    (kept,) = (tmp_path / "__pycache__").glob("simulator-*")
    assert list(kept.rglob("*.nbi"))


def test_what_other_sources_left_goes_and_what_the_user_chose_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("1")
    old = compiled.cache_folder(tmp_path, "")
    old.mkdir(parents=True)
    (tmp_path / "__pycache__" / "one.pyc").write_text("")
    assert compiled.cache_folder(tmp_path, "") == old
    assert old.exists()

    (tmp_path / "one.py").write_text("2")
    new = compiled.cache_folder(tmp_path, "")
    assert new != old
    assert [p.name for p in (tmp_path / "__pycache__").iterdir()] == ["one.pyc"]

    chosen = tmp_path / "chosen"
    (chosen / old.name).mkdir(parents=True)
    assert compiled.cache_folder(tmp_path, str(chosen)) == chosen / new.name
    assert (chosen / old.name).exists()
