"""Measures the PURE modules under their own unit tests, and fails where one is below the bar.

The tests of `disagg_operator.status.changes` are in tests/operator/status/test_changes.py. They
start no process, so all of them together take about a minute. A module counts with the lines and
branches that its own tests run through, and with what its import runs; what the tests of another
module run through by the way is no test of it.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import coverage
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.check_pure import ROOT, Module, pure_modules, read_modules

BAR_PERCENT = 95.0
EXAMPLES = 30  # of a property that names no number itself

# Tests of a module in files that have not its name.
MORE_TESTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (f"disagg_operator.api.{name}" for name in ("base", "engine", "network", "prometheus", "scaling", "workers")),
        ("tests/operator/api/test_parse.py",),
    ),
    "disagg_operator.api.v1alpha1": ("tests/operator/api/test_parse.py", "tests/operator/api/test_rules.py"),
    **dict.fromkeys(
        (f"disagg_operator.rollout.{name}" for name in ("board", "progress", "room", "standing", "telling", "values")),
        ("tests/operator/rollout/test_planner.py", "tests/operator/rollout/test_rollout_properties.py"),
    ),
    **dict.fromkeys(
        (f"disagg_operator.status.alerts.{name}" for name in ("alert", "causes", "objectives")),
        ("tests/operator/status/alerts/test_rule_file.py",),
    ),
    "disagg_operator.autoscaling.signals.pool_sums": ("tests/operator/autoscaling/signals/test_fold.py",),
    "disagg_operator.controller.replicas": ("tests/operator/controller/test_zero_decision.py",),
    "disagg_operator.rollout.planner": ("tests/operator/rollout/test_planned_canaries.py",),
    "disagg_operator.controller.rollout_step": (
        "tests/operator/controller/test_rollouts.py",
        "tests/operator/controller/test_canary_rollouts.py",
        "tests/operator/controller/test_rollouts_at_zero.py",
    ),
    "disagg_operator.performance.config_json": (
        "tests/operator/performance/test_known_models.py",
        "tests/operator/performance/test_model_shape.py",
    ),
    "disagg_operator.performance.model_shape": ("tests/operator/performance/test_known_models.py",),
    "disagg_operator.performance.roof_line": ("tests/operator/performance/test_expert_profile.py",),
    "disagg_worker.engine.queues": ("tests/worker/engine/test_rest_of_prompts.py",),
}


@dataclass(frozen=True)
class Measured:
    """The lines and branches of a module that its tests ran through."""

    name: str
    lines: int
    lines_run: int
    branches: int
    branches_run: int
    missing: str = ""

    @property
    def lines_percent(self) -> float:
        return 100.0 * self.lines_run / self.lines if self.lines else 100.0

    @property
    def branches_percent(self) -> float:
        return 100.0 * self.branches_run / self.branches if self.branches else 100.0

    @property
    def passes(self) -> bool:
        return min(self.lines_percent, self.branches_percent) >= BAR_PERCENT


def decides(module: Module) -> bool:
    """Whether a function of the module does anything: what only declares has nothing to measure."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            if body:
                return True
    return False


def own_tests(module: Module) -> list[str]:
    """Return the files of the module's own tests; the first is where one looks for them."""
    package, *rooms, name = module.name.split(".")
    folder = "/".join(["tests", package.removeprefix("disagg_"), *rooms])
    return [f"{folder}/test_{name}.py", *MORE_TESTS.get(module.name, ())]


def existing_tests(module: Module) -> list[str]:
    return [test for test in own_tests(module) if (ROOT / test).exists()]


def to_measure(modules: Mapping[str, Module]) -> list[Module]:
    return [module for module in pure_modules(modules) if decides(module)]


class FewExamples:
    """A pytest plugin: properties get the same few examples each time, and no deadline.

    A gate must not hang on chance, nor on how busy a machine is.
    """

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        from hypothesis import settings  # not before pytest could rewrite its assertions

        settings.register_profile("coverage", settings.get_profile("ci"), max_examples=EXAMPLES)
        settings.load_profile("coverage")


class FileContexts:
    """A pytest plugin: what a test and its data run is booked under the file of the test."""

    def __init__(self, measuring: coverage.Coverage) -> None:
        self._measuring = measuring

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, object, object]:
        return (yield from self._booked(collector))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._booked(item))

    def _booked(self, node: pytest.Item | pytest.Collector) -> Generator[None, object, object]:
        self._measuring.switch_context(node.nodeid.partition("::")[0])
        try:
            return (yield)
        finally:
            self._measuring.switch_context("")


def run_tests(modules: Sequence[Module], tests: Sequence[str], data_file: str) -> int:
    """Run test files in this process and save what they ran through. Returns pytest's exit code."""
    files = [str(module.path) for module in modules]
    measuring = coverage.Coverage(data_file, branch=True, include=files, config_file=False)
    measuring.start()
    for module in modules:  # before all tests, so that what an import runs is booked under none
        importlib.import_module(module.name)
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not apiserver and not engines"]
    code = pytest.main([*options, *tests], plugins=[FewExamples(), FileContexts(measuring)])
    measuring.stop()
    measuring.save()
    return int(code)


def measure(modules: Sequence[Module], folder: Path, processes: int) -> list[Measured]:
    """Run all tests of `modules`, shared out to `processes`. Exits where a test fails."""
    tests = {test for module in modules for test in existing_tests(module)}
    largest_first = sorted(tests, key=lambda test: -(ROOT / test).stat().st_size)
    jobs = []
    for i in range(processes):
        if share := largest_first[i::processes]:
            list_file = folder / f"list.{i}"
            list_file.write_text("\n".join([*(module.name for module in modules), "", *share]))
            jobs.append([sys.executable, __file__, "--run", str(folder / f"data.{i}"), str(list_file)])
    with ThreadPoolExecutor(len(jobs)) as pool:
        done = list(
            pool.map(lambda job: subprocess.run(job, cwd=ROOT, check=False, capture_output=True, text=True), jobs)
        )
    for job in done:
        if job.returncode:
            sys.exit(f"{job.stdout}{job.stderr}")
    found = coverage.Coverage(str(folder / "all"), branch=True, config_file=False)
    found.combine([str(file) for file in folder.glob("data.*")])
    return [_measured(module, found) for module in modules]


def _measured(module: Module, found: coverage.Coverage) -> Measured:
    file = str(module.path)
    # An empty context is that of the imports.
    contexts = ["^$", *(f"^{re.escape(test)}$" for test in own_tests(module))]
    data = found.get_data()
    data.set_query_contexts(contexts)
    _, lines, _, lines_missing, text = found.analysis2(file)
    branches = found.branch_stats(file)
    partly = [line for line, (exits, taken) in branches.items() if taken < exits and line not in lines_missing]
    return Measured(
        name=module.name,
        lines=len(lines),
        lines_run=len(lines) - len(lines_missing),
        branches=sum(exits for exits, _ in branches.values()),
        branches_run=sum(taken for _, taken in branches.values()),
        missing=", ".join(filter(None, [text, *(f"{line} in part" for line in partly)])),
    )


def report(modules: Sequence[Module], measured: Sequence[Measured]) -> list[str]:
    """Return a table of the modules below the bar, and the files of tests that are not there."""
    lines = [
        f"{module.name} has no tests of its own: {own_tests(module)[0]} does not exist"
        for module in modules
        if not existing_tests(module)
    ]
    low = sorted((m for m in measured if not m.passes), key=lambda m: m.branches_percent)
    if low:
        lines.append(f"{'lines':>6} {'branches':>8}  below {BAR_PERCENT:g} % by their own tests; lines that these miss")
    lines += [f"{m.lines_percent:5.0f}% {m.branches_percent:7.0f}%  {m.name}: {m.missing}" for m in low]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the PURE modules under their own unit tests.")
    parser.add_argument("modules", nargs="*", help="dotted names, or their beginnings; all where there are none")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--all", action="store_true", help="show every module, not only those below the bar")
    parser.add_argument("--tests", action="store_true", help="print the files of tests that are run, and run none")
    parser.add_argument("--run", nargs=2, metavar=("DATA_FILE", "LIST_FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        data_file, list_file = options.run
        names, tests = (part.split("\n") for part in Path(list_file).read_text().split("\n\n"))
        known = read_modules(ROOT)
        sys.exit(run_tests([known[name] for name in names], tests, data_file))
    modules = [
        module
        for module in to_measure(read_modules(ROOT))
        if not options.modules or module.name.startswith(tuple(options.modules))
    ]
    if options.tests:
        print("\n".join(sorted({test for module in modules for test in existing_tests(module)})))
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(modules, Path(folder), options.processes)
    if options.all:
        print("\n".join(f"{m.lines_percent:5.0f}% {m.branches_percent:7.0f}%  {m.name}: {m.missing}" for m in measured))
    lines = report(modules, measured)
    print("\n".join(lines) if lines else f"{len(modules)} PURE modules at {BAR_PERCENT:g} % or more")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
