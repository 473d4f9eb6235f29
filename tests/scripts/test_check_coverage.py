"""The gate measures what a module's own tests run through, and names what they miss."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.check_coverage import Measured, decides, existing_tests, own_tests, report, to_measure
from scripts.check_pure import ROOT, Module, read_modules

from scripts import check_coverage


def module(name: str, code: str = "def f():\n    return 1\n") -> Module:
    return Module(name, ROOT / "nowhere.py", ast.parse(f'"""PURE: decides."""\n{code}'), is_package=False)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("X = 1\n", False),
        ("class A:\n    x: int = 1\n", False),
        ("class A:\n    def f(self) -> int:\n        '''Return a number.'''\n", False),
        ("class A:\n    def f(self) -> int: ...\n", False),
        ("def f():\n    return 1\n", True),
        ("class A:\n    async def f(self):\n        '''Wait.'''\n        pass\n", True),
    ],
)
def test_a_module_decides_when_a_function_of_it_does_anything(code: str, expected: bool) -> None:
    assert decides(module("disagg_operator.x", code)) == expected


def test_the_tests_of_a_module_stand_where_the_module_does() -> None:
    assert own_tests(module("disagg_operator.status.changes"))[0] == "tests/operator/status/test_changes.py"
    assert own_tests(module("disagg_router.errors")) == ["tests/router/test_errors.py"]
    assert existing_tests(module("disagg_router.nowhere")) == []


def test_every_further_test_file_exists_and_is_of_a_module_that_is_measured() -> None:
    measured = {m.name for m in to_measure(read_modules(ROOT))}
    for name, tests in check_coverage.MORE_TESTS.items():
        assert name in measured
        assert [test for test in tests if not (ROOT / test).exists()] == []


@pytest.mark.parametrize(
    ("lines", "branches", "passes"),
    [
        ((100, 95), (20, 19), True),
        ((100, 94), (20, 20), False),
        ((100, 100), (20, 18), False),
        ((10, 10), (0, 0), True),
        ((0, 0), (0, 0), True),
    ],
)
def test_lines_and_branches_must_both_reach_the_bar(
    lines: tuple[int, int], branches: tuple[int, int], passes: bool
) -> None:
    assert Measured("m", *lines, *branches).passes == passes


def test_the_report_names_what_is_low_the_lowest_first_and_what_has_no_tests() -> None:
    modules = [module("disagg_router.nowhere"), module("disagg_router.errors")]
    measured = [
        Measured("good", 10, 10, 2, 2),
        Measured("low", 10, 9, 10, 8, "3, 5 in part"),
        Measured("lowest", 10, 0, 10, 0, "1-9"),
    ]
    lines = report(modules, measured)
    assert lines[0].startswith("disagg_router.nowhere has no tests of its own: tests/router/test_nowhere.py")
    assert [line.split()[2] for line in lines[2:]] == ["lowest:", "low:"]
    assert lines[3].endswith("90%      80%  low: 3, 5 in part")
    assert report(modules[1:], measured[:1]) == []


SOURCE = '''"""PURE: decides."""

def sign(n):
    if n < 0:
        return "-"
    return "+"
'''
TESTS = {
    "test_decides": "from disagg_small.decides import sign\n\ndef test_more():\n    assert sign(1) == '+'\n",
    "test_other": "from disagg_small.decides import sign\n\nDATA = sign(-1)\n\n"
    "def test_less():\n    assert sign(-2) == DATA\n",
}
MAIN = """
import sys
from pathlib import Path
from scripts import check_coverage, check_pure
folder = Path(sys.argv[1])
known = check_pure.read_modules(folder, ["worker"])
module = known["disagg_small.decides"]
code = check_coverage.run_tests([module], [str(p) for p in sorted((folder / "tests").iterdir())], str(folder / "data"))
assert code == 0, code
found = check_coverage.coverage.Coverage(str(folder / "data"), branch=True, config_file=False)
found.load()
for test in (["tests/test_decides.py"], ["tests/test_other.py"], ["tests/test_decides.py", "tests/test_other.py"]):
    check_coverage.own_tests = lambda _: test
    m = check_coverage._measured(module, found)
    print(m.lines, m.lines_run, m.branches, m.branches_run, m.missing)
"""


def test_only_what_its_own_tests_run_through_is_booked_for_a_module(tmp_path: Path) -> None:
    package, tests = tmp_path / "worker/disagg_small", tmp_path / "tests"
    package.mkdir(parents=True)
    tests.mkdir()
    (package / "__init__.py").write_text("")
    (package / "decides.py").write_text(SOURCE)
    for name, text in TESTS.items():
        (tests / f"{name}.py").write_text(text)
    (tmp_path / "conftest.py").write_text("from hypothesis import settings\nsettings.register_profile('ci')\n")
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path / 'worker'}"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(tmp_path)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alone, other, both = done.stdout.strip().splitlines()[-3:]
    assert alone == "4 3 2 1 5, 4 in part"
    assert other == "4 3 2 1 6, 4 in part"
    assert both == "4 4 2 2"
