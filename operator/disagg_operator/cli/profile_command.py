"""The command `disagg profile`: it measures the workers behind a running OpenAI endpoint.

The result is a profile that `disagg simulate` and `disagg plan` read.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from disagg_operator.cli import measure
from disagg_operator.cli.progress_display import ProgressDisplay
from disagg_operator.cli.served_endpoint import About, MeasureError, ServedEndpoint
from disagg_operator.performance import fit, fit_quality, profile_file
from disagg_operator.performance import profile as profiles
from disagg_operator.performance.origin import Origin
from disagg_wire.version import VERSION

_TICK_S = 0.5

ERRORS = (MeasureError, fit.FitError, profiles.ProfileError, ValueError, OSError)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "url",
        help="base URL of the OpenAI API with one replica of each pool behind it, such as http://127.0.0.1:8080/v1",
    )
    parser.add_argument("--model", help="name of the model (default: the first that the endpoint lists)")
    parser.add_argument(
        "--kv-tokens",
        type=int,
        required=True,
        help="number of tokens that the cache of one decode worker holds (see its log or /metrics)",
    )
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of one worker, for the totals of simulate and plan")
    parser.add_argument(
        "--max-prompt-tokens",
        type=int,
        default=1024,
        help="length of the longest prompt; the longest answer has half as many tokens",
    )
    parser.add_argument(
        "--max-batch", type=int, help="maximum number of concurrent streams (default: --max-running, at most 64)"
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=2048,
        help="maximum number of tokens of a prefill batch (spec.prefill.maxBatchTokens)",
    )
    parser.add_argument(
        "--max-running",
        type=int,
        default=64,
        help="maximum number of sequences of a decode worker (spec.decode.maxRunningRequests)",
    )
    parser.add_argument(
        "--most-error",
        type=float,
        default=100 * fit_quality.MOST_ERROR,
        metavar="PERCENT",
        help="refuse a profile if a time differs by more from the fitted one, or from that of the same request "
        "(default 30)",
    )
    _origin_arguments(parser)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the measurement (default 60)")
    parser.add_argument("--out", type=Path, default=Path("profile.json"), help="file to write (default profile.json)")


def _origin_arguments(parser: argparse.ArgumentParser) -> None:
    of = parser.add_argument_group("origin, which is written into the file (default: what the endpoint says)")
    of.add_argument(
        "--weights", metavar="MODEL", help="the model as `disagg plan` is asked for it, if served by an alias"
    )
    of.add_argument("--hardware", default="", metavar="NAME", help="the accelerator, such as H100")
    of.add_argument("--engine", metavar="NAME", help="the inference engine")
    of.add_argument("--engine-version", metavar="VERSION", help="its version")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write a profile, and return the exit status. Raises one of ERRORS."""
    args.max_batch = min(64, args.max_running) if args.max_batch is None else args.max_batch
    for name, least in (
        ("gpus", 1),
        ("kv_tokens", 1),
        ("max_prompt_tokens", 128),
        ("max_batch", 2),
        ("batch_tokens", 1),
        ("max_running", 1),
    ):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')}: must be {least} or more")
    if not 1 <= args.seconds <= 86_400:  # also refuses NaN
        raise ValueError(f"--seconds: must be 1 to 86400, not {args.seconds:g}")
    if not args.most_error > 0:
        raise ValueError(f"--most-error: must be more than 0, not {args.most_error:g}")
    if not args.out.absolute().parent.is_dir():
        raise ValueError(f"--out: {args.out}: there is no folder {args.out.parent}")
    extent = measure.Extent(args.max_prompt_tokens, args.max_batch, args.seconds)
    limits = fit.Limits(args.gpus, args.kv_tokens, args.batch_tokens, args.max_running)
    with ProgressDisplay() as working:
        fitted, repeated, about = asyncio.run(_measure(args.url, args.model, extent, limits, working))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(coefficients(fitted.profile))
    console.print(residuals(fitted))
    if why := fit_quality.refusals(fitted, repeated, args.most_error / 100):
        raise fit.FitError("\n  - ".join(["the measurement is refused, and nothing was written:", *why]))
    origin = Origin(
        args.weights or about.model, args.engine or about.engine, args.engine_version or about.engine_version,
        args.hardware, VERSION, datetime.now(UTC).date().isoformat(), round(fitted.worst_error, 3),
    )  # fmt: skip
    profile_file.save(fitted.profile, args.out, origin)
    console.print(f"written to {args.out}: {origin.words()}", highlight=False, markup=False)
    console.print(f"use it with `disagg simulate --profile {args.out}`", highlight=False, markup=False)
    return 0


async def _measure(
    url: str, model: str | None, extent: measure.Extent, limits: fit.Limits, working: ProgressDisplay
) -> tuple[fit.Fitted, Sequence[fit_quality.Repeated], About]:
    working.say(f"asking {url}")
    async with ServedEndpoint(url, model, os.environ.get("OPENAI_API_KEY")) as endpoint:
        about = await endpoint.about()
        ticking = asyncio.create_task(_tick(working, extent.seconds))
        try:
            found = await measure.measure(endpoint, extent, lambda text: working.say(f"{endpoint.model}: {text}"))
        finally:
            ticking.cancel()
    return fit.fit(found.prefill, found.decode, limits, found.answers, found.front_s), found.repeated, about


async def _tick(working: ProgressDisplay, seconds: float) -> None:
    """Tell how much of the time of a measurement is over, until cancelled."""
    begin_s = time.monotonic()
    while True:
        working.reach((time.monotonic() - begin_s) / seconds)
        await asyncio.sleep(_TICK_S)


def coefficients(p: profiles.Profile) -> Table:
    """Return a table of the coefficients with their units."""
    table = Table(
        title="prefill a + b*n + c*n^2, decode step d + e*sequences + f*tokens + h*sequences^2", title_justify="left"
    )
    rows = {
        "a": (1e3 * p.a_s, "ms a batch"),
        "b": (1e6 * p.b_s_per_token, "us a prompt token"),
        "c": (1e9 * p.c_s_per_token2, "ns a token^2"),
        "d": (1e3 * p.d_s, "ms a step"),
        "e": (1e6 * p.e_s_per_sequence, "us a sequence"),
        "f": (1e9 * p.f_s_per_token, "ns a token in the cache"),
        "h": (1e6 * p.h_s_per_sequence2, "us a sequence^2"),
        "take in": (1e3 * p.take_in_s, "ms by which a joining sequence delays the others"),
        "overhead": (1e3 * p.overhead_s, "ms to the first token, in addition to computation"),
        "hand-over": (1e3 * p.handover_s, "ms from the first token until decode begins"),
        "front": (1e3 * p.front_s, "ms of a router for each request"),
        "batch wait": (1e3 * p.batch_wait_s, f"ms for prompts under {p.batch_full_tokens} tokens"),
    }
    for column in ("", "value"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    for name, (value, unit) in rows.items():
        table.add_row(name, f"{value:.3g}", unit)
    return table


def residuals(fitted: fit.Fitted) -> Table:
    """Return a table of the measured and the fitted times."""
    table = Table(title=f"residuals (worst {100 * fitted.worst_error:.0f} %)", title_justify="left")
    table.add_column("")
    for column in ("measured ms", "fitted ms", "error %"):
        table.add_column(column, justify="right")
    for part, rows in (("prefill", fitted.prefill), ("decode", fitted.decode)):
        for r in rows:
            table.add_row(
                f"{part}, {r.what}", f"{1e3 * r.measured_s:.2f}", f"{1e3 * r.fitted_s:.2f}", f"{100 * r.error:+.1f}"
            )
    return table
