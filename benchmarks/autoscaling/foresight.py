"""What the predictive policy costs for lack of foresight, in parts.

    python -m benchmarks.autoscaling.foresight --traces DIR [TRACE ...] [--out benchmarks/results]

Each row takes one difficulty away from the policy or from the cluster and leaves the rest as it is.
No policy that only knows the past can have what such a row saves. With no trace named,
autoscaling-foresight.md is written. Runs are kept in `--cache` until code, trace or row change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import disagg_operator
from benchmarks.autoscaling import run
from benchmarks.machine import machine
from disagg_operator.autoscaling.policy import forecast, history, predictive, sizing
from disagg_operator.performance import profile_file
from disagg_operator.simulation import bounds, named_policies
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.score import score
from disagg_operator.simulation.traces import Trace
from disagg_wire.roles import PREFILL

TRACES = ("azure2023_conv", "mooncake_conversation", "servegen_m-mid_d4 -2")
PARTS = {
    "the policy": "",
    "perfect forecasts": "the true work of a cold start ahead, and our sizing of it",
    "no hold": "workers go as soon as they are not needed",
    "perfect forecasts, no hold": "",
    "workers start at once": "cold starts of 0 s, and forecasts of three scrapes",
    "load and fleet four times as large": "a quarter of its GPU-hours: whole workers and chance weigh less",
}
_LARGER = 4
Result = dict[str, Any]


@contextmanager
def _patched(module: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def knowing(work: tuple[Any, Any], setup: Setup, plan: Callable[..., Any]) -> Callable[..., Any]:
    """Return `plan` with the true work of the time that it forecasts, and no guesses beside it."""

    def at(role: str, at_s: float) -> float:
        series = work[role != PREFILL]
        return float(series[min(int(at_s / setup.interval_s), len(series) - 1)])

    def planned(settings: Any, role: str, o: Any, pool: Any, outlook: Any) -> Any:
        def predict(f: forecast.Forecaster, horizon_s: float, tuning: forecast.Tuning) -> tuple[float, ...]:
            return (at(role, f.updated_s + horizon_s), *f.levels)

        with _patched(forecast, predict=predict):
            return plan(settings, role, o, pool, replace(outlook, coming=0.0, shown=0.0))

    return planned


def simulate(directory: Path, name: str, part: str) -> Result:
    """Return the score of a trace with one difficulty taken away."""
    trace, past = run.load(run.Job(directory, name, "policy", named_policies.PREDICTIVE))
    setup = Setup(profile_file.load("70b-h100-tp4"))
    if part == "workers start at once":
        setup = replace(setup, cold_start_s=(0.0, 0.0))
    if part.startswith("load"):
        trace, past = trace.times(_LARGER), [minute.times(_LARGER) for minute in past] if past else None
        setup = replace(setup, most=_LARGER * setup.most)
    values: dict[str, Any] = {"_KEEP": 0.0} if "no hold" in part else {}
    plans = {"plan": knowing(bounds._true_work(trace, setup), setup, sizing.plan)} if "perfect" in part else {}
    with _patched(sizing, **values), _patched(predictive, **plans):
        return _score(trace, past, setup)


def _score(trace: Trace, past: list[history.Minute] | None, setup: Setup) -> Result:
    settings = replace(named_policies.settings_of(setup), cold_start_s=setup.cold_start_s[1] * 2 / 3)
    policy = named_policies.Predictive(settings, history.seed(settings, past or []))
    return asdict(score(Cluster(trace, setup).run(policy)))


def cached(folder: Path, directory: Path, name: str, part: str) -> Result:
    """Return the result of `simulate`, from the cache if the same code has made it before."""
    root = Path(disagg_operator.__path__[0])
    used = [*root.glob("simulation/*.py"), *root.glob("autoscaling/policy/*.py"), Path(__file__)]
    code = b"".join(path.read_bytes() for path in sorted(used)) + repr((name, part)).encode()
    kept = folder / f"foresight-{hashlib.sha256(code).hexdigest()[:24]}.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(simulate(directory, name, part)))
    found: Result = json.loads(kept.read_text())
    return found


def rows(names: tuple[str, ...], results: Callable[[str, str], Result]) -> Iterator[str]:
    """Yield a row for each part, from a function of a trace and a part."""
    yield "| | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for part, words in PARTS.items():
        cells = []
        for name in names:
            base, found = results(name, "the policy"), results(name, part)
            hours = found["gpu_hours"] / (_LARGER if part.startswith("load") else 1)
            change = f" ({100 * (hours / base['gpu_hours'] - 1):+.0f} %)" if part != "the policy" else ""
            cells.append(f"{hours:.0f} @{100 * found['attainment']:.2f}{change}")
        yield f"| {part}{f' ({words})' if words else ''} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print a row for each part, and write the page if no trace was named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TRACE", help=f"default: {', '.join(TRACES)}")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path("build/autoscaling"))
    args = parser.parse_args()
    names = tuple(args.names) or TRACES
    table = []
    for row in rows(names, lambda name, part: cached(args.cache, args.traces, name, part)):
        table.append(row)
        print(row, flush=True)
    if not args.names:
        text = [
            "# Autoscaling: what lack of foresight costs", "", f"Generated by `make bench-foresight`. {machine()}.", "",
            "GPU-hours @ attainment % of the predictive policy, first come, first served, and the change of the",
            "GPU-hours against its own. Each row takes one difficulty away and leaves the rest as it is.", "", *table,
        ]  # fmt: skip
        (args.out / "autoscaling-foresight.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
