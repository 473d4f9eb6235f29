"""Scenarios of the autoscaling benchmark: steps, ramps, budgets, and what cannot be met.

    python -m benchmarks.autoscaling.scenarios --traces DIR [NAME ...] [--out benchmarks/results]

The arrivals are Poisson at a rate that changes at given times; the lengths of prompts and answers
are drawn from the first six hours of servegen_m-large_d4. The rules are those of `run`. Each run is
kept in `--cache` until its code, trace or rules change, so an interrupted benchmark continues where
it was. With all scenarios, autoscaling-scenarios.md and .json are written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import disagg_operator
from benchmarks.machine import machine
from disagg_operator.performance import profile_file
from disagg_operator.simulation import named_policies, traces
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.ordering import EARLIEST_DEADLINE, FIRST_COME, ORDERS
from disagg_operator.simulation.score import score

SOURCE = "servegen_m-large_d4.csv.gz"
_LENGTHS_UNTIL_S = 6 * 3600.0
_HOUR_S = 3600.0
KEDA = "KEDA (1, 48)"
PROFILE = "70b-h100-tp4"


@dataclass(frozen=True)
class Scenario:
    """A load, the rules that differ from the benchmark's, and what is asked of the policy."""

    rates: tuple[tuple[float, float], ...]
    """(hour, requests per second) between which the rate is a straight line; the last ends it."""
    goal: str
    """What is asked of the predictive policy."""
    longer_from: float | None = None
    """The hour from which answers are three times as long."""
    setup: dict[str, Any] = field(default_factory=dict)
    """Rules that differ."""
    budgets: tuple[int, ...] = ()
    """The numbers of GPUs with which the load is also run, in both orders of the queue."""


_STEP = ((0, 3), (2, 3), (2, 30), (4, 30), (4, 3), (6, 3))
SCENARIOS = {
    "step10x": Scenario(_STEP, ">= 98.3 %, 0 dropped, <= 200 GPU-hours"),
    "step10x_budgets": Scenario(_STEP, ">= 95 % with 40, 48 and 60 GPUs, never less with more", budgets=(40, 48, 60)),
    "step10x_too_few": Scenario(
        _STEP, "no pool under 80 % of the attainment of the best fixed split of 28 GPUs", budgets=(28,)
    ),
    "step_long": Scenario(((0, 3), (2, 3), (2, 30), (26, 30)), ">= 99 %, <= 1,000 GPU-hours"),
    "ramp10x": Scenario(((0, 3), (2, 3), (2 + 1 / 6, 30), (6, 30)), ">= 99 %"),
    "output3x": Scenario(((0, 15), (6, 15)), ">= 99.2 %, <= 240 GPU-hours", longer_from=3),
    "infeasible_tpot": Scenario(((0, 10), (6, 10)), "<= 200 GPU-hours", setup={"tpot_s": 0.028}),
    "unplaceable": Scenario(_STEP, "<= 20 starts", setup={"room": 10}),
}


def load(scenario: Scenario, source: traces.Trace, seed: int = 0) -> traces.Trace:
    """Return the requests of a scenario, with lengths drawn from the source."""
    random = np.random.default_rng(seed)
    parts = []
    for (from_h, rate), (to_h, then) in zip(scenario.rates, scenario.rates[1:], strict=False):
        if to_h == from_h:
            continue
        most, span_s = max(rate, then), (to_h - from_h) * _HOUR_S
        at = np.sort(random.uniform(0.0, span_s, random.poisson(most * span_s)))
        kept = random.uniform(0.0, most, len(at)) < rate + (then - rate) * at / span_s
        parts.append(from_h * _HOUR_S + at[kept])
    arrival_s = np.concatenate(parts)
    picked = random.integers(0, np.searchsorted(source.arrival_s, _LENGTHS_UNTIL_S), len(arrival_s))
    output = source.output_tokens[picked]
    if scenario.longer_from is not None:
        output = np.where(arrival_s >= scenario.longer_from * _HOUR_S, 3 * output, output)
    prompt = source.prompt_tokens[picked]
    return traces.Trace("scenario", arrival_s, prompt, np.zeros_like(prompt), output)


@dataclass(frozen=True)
class Run:
    """One simulation of a scenario."""

    name: str
    policy: str
    order: str = FIRST_COME
    gpus: int | None = None

    def setup(self) -> Setup:
        """Return the cluster and its rules."""
        base = Setup(profile_file.load(PROFILE), queue_order=self.order, max_gpus=self.gpus)
        return replace(base, **SCENARIOS[self.name].setup)


def runs(name: str) -> Iterator[Run]:
    """Yield the runs of a scenario."""
    budgets = SCENARIOS[name].budgets
    if not budgets:
        yield Run(name, named_policies.PREDICTIVE)
        yield Run(name, KEDA)
    for gpus in budgets:
        for order in ORDERS:
            yield Run(name, named_policies.PREDICTIVE, order, gpus)
    if name == "step10x_too_few":
        workers = budgets[0] // profile_file.load(PROFILE).gpus
        for order in ORDERS:
            for prefill in range(1, workers):
                yield Run(name, f"static:{prefill},{workers - prefill}", order, budgets[0])


def _key(run: Run, source: Path) -> str:
    code, root = hashlib.sha256(), Path(disagg_operator.__path__[0])
    used = [*root.glob("simulation/*.py"), root / "performance/profile.py"]
    if run.policy == named_policies.PREDICTIVE:
        used += root.glob("autoscaling/policy/*.py")
    for path in sorted(used):
        code.update(path.read_bytes())
    code.update(repr([run, SCENARIOS[run.name], source.stat().st_size]).encode())
    return code.hexdigest()[:24]


def simulate(run: Run, source: traces.Trace) -> dict[str, Any]:
    """Return the score of a run as plain data."""
    began, setup = time.process_time(), run.setup()
    policy = named_policies.make(run.policy, setup)
    cluster = Cluster(load(SCENARIOS[run.name], source), setup).run(policy)
    return asdict(score(cluster)) | {"cpu_s": time.process_time() - began}


class _Source:
    """The trace that the lengths are drawn from, read only if a run needs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trace: traces.Trace | None = None

    def trace(self) -> traces.Trace:
        self._trace = self._trace or traces.read(self.path)
        return self._trace


def cached(folder: Path, run: Run, source: _Source) -> dict[str, Any]:
    """Return the result of a run, from the cache if the same code has made it before."""
    kept = folder / f"scenario-{_key(run, source.path)}.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(simulate(run, source.trace())))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def row(run: Run, r: dict[str, Any]) -> str:
    """Return a row of the table."""
    order = "deadline" if run.order == EARLIEST_DEADLINE else "arrival"
    shares = " | ".join(f"{100 * r[k]:.2f}" for k in ("attainment", "ttft_attainment", "tpot_attainment"))
    return (
        f"| {run.name} | {run.policy} | {order} | {run.gpus or ''} | {shares} | {r['gpu_hours']:.0f} | "
        f"{r['starts']} | {r['dropped']} | {r['killed']} |"
    )


HEAD = [
    "| scenario | policy | order | GPUs | attained % | TTFT % | TPOT % | GPU-hours | starts | dropped | killed |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
]


def main() -> None:
    """Run scenarios, print a row for each run, and write the report if all were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path("build/autoscaling"))
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(SCENARIOS)):
        parser.error(f"{unknown[0]} is none of {', '.join(SCENARIOS)}")
    source, lines, rows = _Source(args.traces / SOURCE), list(HEAD), []
    print("\n".join(HEAD), flush=True)
    for name in args.names or SCENARIOS:
        for run in runs(name):
            result = cached(args.cache, run, source)
            lines.append(row(run, result))
            rows.append(asdict(run) | result)
            print(lines[-1], flush=True)
        print(f"{name}: asked: {SCENARIOS[name].goal}", flush=True)
    if not args.names:
        write(args.out, lines, rows)


def write(out: Path, lines: list[str], rows: list[dict[str, Any]]) -> None:
    """Write the report and its figures."""
    text = [
        "# Autoscaling: scenarios", "", f"Generated by `make bench-autoscaling`. {machine()}.", "",
        "Poisson arrivals, lengths drawn from the first six hours of servegen_m-large_d4, 70B on 4 H100.", "",
        *lines, "", "Asked of the predictive policy:", "", *(f"- {n}: {s.goal}" for n, s in SCENARIOS.items()),
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "autoscaling-scenarios.md").write_text("\n".join(text) + "\n")
    (out / "autoscaling-scenarios.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
