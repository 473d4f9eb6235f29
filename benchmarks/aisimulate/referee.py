"""What AISimulate says of a shape: the times of steps, and the throughput of one pool and two.

It needs the package aisimulate. Results are kept in a file after each shape, so that a run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from pathlib import Path

from benchmarks.aisimulate.shapes import SHAPES, Shape, throughputs
from disagg_operator.performance import kernel_tables

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "aisimulate.json"
_GPUS = 64
_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Said:
    """What AISimulate says of a shape; throughputs are output tokens per second per GPU."""

    prompt_ms: float
    """The time of a prompt alone."""
    first_step_ms: float
    """The time of a decode step of one sequence."""
    step_ms: float
    """The time of a decode step of the batch of the shape."""
    one_pool: float
    """The throughput of its best aggregated deployment."""
    two_pools: float
    """The throughput of its best disaggregated deployment."""
    planned_one: float
    """What our planner says of one pool with the kernel tables for speeds."""
    planned_two: float
    """What our planner says of two pools with the kernel tables for speeds."""

    @property
    def times_ms(self) -> tuple[float, float, float]:
        """The times that are compared."""
        return self.prompt_ms, self.first_step_ms, self.step_ms


def ask(shape: Shape) -> Said:
    """Ask AISimulate for a shape."""
    name, same_bits = kernel_tables.known_as(shape.shape)
    tables = kernel_tables.tables_of(shape.source, name, shape.shape, shape.tensor, same_bits)
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):
        found = import_module("aisimulate.legacy_cli.api").cli_default(
            name, _GPUS, shape.source.system, backend=shape.source.backend, isl=shape.prompt_tokens,
            osl=shape.output_tokens, ttft=_MS * shape.ttft_s, tpot=shape.tpot_ms, top_n=1, strict_sla=True,
        ).best_throughputs  # fmt: skip
    profiles = [t.profile for t in kernel_tables.read(shape.source, shape.shape)]
    planned = throughputs(replace(shape.question, measured={shape.gpu: profiles}))
    return Said(
        prompt_ms=_MS * tables.prompt_s(shape.prompt_tokens),
        first_step_ms=_MS * tables.step_s(1, shape.held_tokens),
        step_ms=_MS * tables.step_s(shape.batch, shape.held_tokens),
        one_pool=float(found["agg"]),
        two_pools=float(found["disagg"]),
        planned_one=planned[0],
        planned_two=planned[1],
    )


def recorded() -> dict[str, Said]:
    """Return what AISimulate said when it was asked last, by the title of the shape."""
    if not RESULTS.exists():
        return {}
    return {title: Said(**said) for title, said in json.loads(RESULTS.read_text(encoding="utf-8"))["shapes"].items()}


def version() -> str:
    """Return the version of AISimulate that was asked last."""
    return str(json.loads(RESULTS.read_text(encoding="utf-8"))["aisimulate"])


def record(found: Mapping[str, Said]) -> None:
    """Keep what AISimulate said."""
    rows = {title: {k: round(v, 3) for k, v in asdict(said).items()} for title, said in found.items()}
    whole = {"aisimulate": metadata.version("aisimulate"), "shapes": rows}
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def ask_all() -> None:
    """Ask for every shape of which nothing is recorded."""
    found = recorded()
    for shape in SHAPES:
        if shape.title not in found:
            print(f"asking AISimulate for {shape.title}", flush=True)
            found[shape.title] = ask(shape)
            record(found)
