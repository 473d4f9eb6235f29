"""Run the predictive policy with each of its named constants halved and doubled.

    python -m benchmarks.ablation --traces DIR [NAME ...] [--out benchmarks/results]

The days are those that no constant was chosen with: two days before each ServeGen trace, first
come, first served. A constant whose change does not matter there earns nothing. Each run is kept in
`--cache` until the code, the day or the change differs. With all constants, ablation.md is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import disagg_operator
from benchmarks.ablation.constants import MODULES as POLICY_MODULES
from benchmarks.ablation.constants import Constant, code_lines, constants
from benchmarks.autoscaling import run
from benchmarks.machine import machine
from disagg_operator.autoscaling.policy import forecast, history, learning, miss_curve, predictive, sizing
from disagg_operator.performance import profile_file
from disagg_operator.simulation import named_policies
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.score import score

DAYS = ("servegen_m-large_d4 -2", "servegen_m-mid_d4 -2")
MODULES: dict[str, ModuleType] = {
    "forecast": forecast, "learning": learning, "miss_curve": miss_curve, "predictive": predictive, "sizing": sizing,
}  # fmt: skip
# Numbers that resolve a histogram or bound what is stored, and facts: a change changes the format.
_RESOLUTION = {
    "DAY_S", "SHAPE_BINS", "ERROR_STEP", "ERROR_BINS", "_KEPT_FORECASTS", "LEAST_SLACK", "SLACK_STEP", "SLACK_BINS",
    "PoolLimits.most",
}  # fmt: skip
_FACTORS = (0.5, 2.0)
Result = dict[str, Any]


def changed() -> list[Constant]:
    """Return the constants that are halved and doubled."""
    return [c for c in constants() if c.name and c.name not in _RESOLUTION]


class _Changed:
    """The policy with one constant multiplied, for as long as it is open."""

    def __init__(self, constant: Constant, factor: float) -> None:
        self.constant, self.factor = constant, factor
        self._before: list[tuple[ModuleType, str, Any]] = []

    def __enter__(self) -> _Changed:
        name, own = self.constant.name, MODULES.get(self.constant.module)
        for module in () if "." in name else MODULES.values():
            if module is own or (hasattr(module, name) and not name.startswith("_")):
                self._before.append((module, name, getattr(module, name)))
                setattr(module, name, _times(getattr(module, name), self.factor))
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, value in self._before:
            setattr(module, name, value)

    def settings(self, settings: predictive.Settings) -> predictive.Settings:
        """Return the settings with the constant multiplied if it is a default of theirs."""
        owner, _, name = self.constant.name.partition(".")
        if owner == "Settings":
            return replace(settings, **{name: _times(getattr(settings, name), self.factor)})
        if owner == "Tuning":
            tuning = replace(settings.tuning, **{name: _times(getattr(settings.tuning, name), self.factor)})
            return replace(settings, tuning=tuning)
        return settings


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_times(v, factor) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _times(getattr(value, f.name), factor) for f in fields(value)})
    return value * factor


def simulate(directory: Path, day: str, constant: Constant, factor: float) -> Result:
    """Return the score of a day with a constant multiplied."""
    trace, past = run.load(run.Job(directory, day, "policy", named_policies.PREDICTIVE))
    setup = Setup(profile_file.load("70b-h100-tp4"))
    with _Changed(constant, factor) as policy:
        settings = policy.settings(named_policies.settings_of(setup))
        made = named_policies.Predictive(settings, history.seed(settings, past or []))
        return asdict(score(Cluster(trace, setup).run(made)))


def _code() -> bytes:
    root = Path(disagg_operator.__path__[0])
    used = [*root.glob("simulation/*.py"), *root.glob("autoscaling/policy/*.py"), root / "performance/profile.py"]
    return b"".join(path.read_bytes() for path in sorted(used))


def cached(folder: Path, directory: Path, day: str, constant: Constant, factor: float) -> Result:
    """Return the result of `simulate`, from the cache if the same code has made it before."""
    what = "" if factor == 1 else repr((constant.module, constant.name))
    key = hashlib.sha256(_code() + repr((day, what, factor)).encode()).hexdigest()[:24]
    kept = folder / f"ablation-{key}.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(simulate(directory, day, constant, factor)))
    found: Result = json.loads(kept.read_text())
    return found


def cells(base: Result, result: Result) -> str:
    """Return the change of the GPU-hours in percent, and of the attainment in points."""
    hours = 100 * (result["gpu_hours"] / base["gpu_hours"] - 1)
    return f"{hours:+.1f} % {100 * (result['attainment'] - base['attainment']):+.2f}"


def rows(names: list[str], results: Any) -> Iterator[str]:
    """Yield a row for each constant, from a function of a day, a constant and a factor."""
    chosen = [c for c in changed() if not names or c.name in names]
    base = [results(day, chosen[0], 1.0) for day in DAYS]
    yield "| unchanged | | " + " | | ".join(f"{r['gpu_hours']:.0f} @{100 * r['attainment']:.2f}" for r in base) + " | |"
    for c in chosen:
        found = [cells(b, results(day, c, f)) for day, b in zip(DAYS, base, strict=True) for f in _FACTORS]
        value = ", ".join(f"{v:g}" for v in c.values)
        yield f"| `{c.name}` ({c.module}) | {value} | " + " | ".join(found) + " |"


HEAD = [
    "| constant | value | " + " | ".join(f"{day} {word}" for day in DAYS for word in ("halved", "doubled")) + " |",
    "|---|---|" + "---|" * (2 * len(DAYS)),
]


def main() -> None:
    """Run the changes, print a row for each constant, and write the page if all were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="constants; default: all")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path("build/autoscaling"))
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - {c.name for c in changed()}):
        parser.error(f"{unknown[0]} is none of {', '.join(c.name for c in changed())}")
    table = list(HEAD)
    print("\n".join(HEAD), flush=True)
    for row in rows(args.names, lambda day, c, factor: cached(args.cache, args.traces, day, c, factor)):
        table.append(row)
        print(row, flush=True)
    if not args.names:
        (args.out / "ablation.md").write_text("\n".join([*_introduction(), "", *table]) + "\n")


def _introduction() -> list[str]:
    found = constants()
    return [
        "# What each constant of the autoscaling policy is worth", "",
        f"Generated by `make bench-ablation`. {machine()}.", "",
        "Each constant halved and doubled on days that none was chosen with, first come, first served: the change of",
        "the GPU-hours and of the attainment in points. What moves neither in either direction earns nothing. The",
        f"policy has {sum(map(code_lines, POLICY_MODULES))} lines of code and {len(found)} numbers, of which",
        f"{sum(not c.name for c in found)} stand in expressions (most guard a division or bound a measurement).",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
