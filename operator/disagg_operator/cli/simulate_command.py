"""The command `disagg simulate`: it simulates scaling policies on a trace, request by request."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.cli import html_page, plots, speeds, timeline_html
from disagg_operator.cli.progress_display import ProgressDisplay
from disagg_operator.performance import profile as profiles
from disagg_operator.simulation import bounds, compiled, monolithic_workers, named_policies, traces
from disagg_operator.simulation.cluster import Cluster, Policy, Setup
from disagg_operator.simulation.ordering import EARLIEST_DEADLINE, ORDERS
from disagg_operator.simulation.score import Score, score

_MOST_REQUESTS = 100_000_000
# Each argument with its least and its greatest value. `most` is at most 200, because the simulator
# has room for 512 workers of a pool, including those that drain.
_RANGES = (
    ("copies", 1, 1_000_000),
    ("tpot_ms", 0.001, 1e6),
    ("ttft_s", 0.001, 1e5),
    ("most", 1, 200),
    ("min_prefill", 1, 200),
    ("min_decode", 1, 200),
    ("max_gpus", 1, 1_000_000),
    ("warm_workers", 0, 1_000_000),
    ("failures_per_worker_day", 0, 10_000),
    ("link_gbps", 0, 1e6),
    ("kv_bytes_per_token", 1, 1e9),
    ("role_flip_s", 0.1, 3600),
    ("monolithic", 1, 10_000),
    ("routers", 0, 1_000_000),
    ("tensor", 1, 64),
)
ERRORS = (traces.TraceError, profiles.ProfileError, named_policies.PolicyError, ValueError, OSError)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "trace", type=Path, help="CSV, CSV.GZ, JSONL or Parquet in the format of Azure, Mooncake, BurstGPT or disagg"
    )
    parser.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="predictive (default), static:P,D, the name of a baseline, or all",
    )
    parser.add_argument(
        "--profile",
        default="70b-h100-tp4",
        help="a published profile, a file that `disagg profile` wrote, or aisimulate:SYSTEM/BACKEND with --model",
    )
    parser.add_argument("--model", default="", help="the model; a profile of another one is refused")
    parser.add_argument(
        "--tensor", type=int, metavar="GPUS", help="GPUs of a worker with aisimulate: (default: the fewest that do)"
    )
    parser.add_argument("--any-profile", action="store_true", help="accept it nevertheless")
    parser.add_argument(
        "--copies",
        type=int,
        default=1,
        help="number of times that each request is served: once when it arrived, the others shifted by up to 20 s",
    )
    parser.add_argument("--history", type=Path, help="CSV of the minutes before the trace, for the predictive policy")
    _cluster_arguments(parser)
    _condition_arguments(parser)
    parser.add_argument("--monolithic", type=int, metavar="N", help="also simulate N workers that prefill and decode")
    parser.add_argument(
        "--bounds",
        action="store_true",
        help="also compute the fluid bound, the cheapest fixed fleet and a plan with foresight",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")
    parser.add_argument("--plot", type=Path, help="write the course of time as PNG (one policy) or HTML")
    parser.add_argument("--json", action="store_true", help="print scores as JSON")


def _cluster_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tpot-ms", type=float, default=60.0, help="objective for the time per output token")
    parser.add_argument(
        "--ttft-s",
        type=float,
        default=1.0,
        help="objective for the time to first token; that of a long prompt is 5 times its prefill alone",
    )
    parser.add_argument(
        "--cold-start-s",
        type=float,
        nargs=2,
        default=(60.0, 180.0),
        metavar=("FROM", "TO"),
        help="range of the time to start a worker (default 60 180)",
    )
    parser.add_argument("--most", type=int, default=40, help="maximum number of workers of a pool (default 40)")
    for pool in ("prefill", "decode"):
        parser.add_argument(f"--min-{pool}", type=int, default=1, help=f"minimum number of {pool} workers (default 1)")
    parser.add_argument("--max-gpus", type=int, help="maximum number of GPUs of both pools, for the predictive policy")
    parser.add_argument(
        "--grace-s", type=float, default=600.0, help="time that a draining decode worker may take; inf: no limit"
    )
    parser.add_argument(
        "--warm-workers", type=int, help="number of workers of a pool that start without waiting for a node"
    )


def _condition_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--failures-per-worker-day", type=float, default=0.0, help="mean failures of a worker in a day (default 0)"
    )
    parser.add_argument(
        "--link-gbps",
        type=float,
        default=0.0,
        help="bandwidth of a network that all KV transfers share; 0: transfers are hidden by prefill",
    )
    parser.add_argument(
        "--kv-bytes-per-token",
        type=float,
        default=327_680.0,
        help="size of KV for --link-gbps (default: that of 70B with 8 KV heads in 16 bits)",
    )
    parser.add_argument("--blind-s", type=float, nargs=2, metavar=("FROM", "TO"), help="a time span without metrics")
    parser.add_argument(
        "--role-flip-s", type=float, help="time to move a worker to the other pool; if not set, workers do not move"
    )
    parser.add_argument(
        "--queue-order",
        choices=ORDERS,
        default=EARLIEST_DEADLINE,
        help="order of waiting prompts (default: that of our routers)",
    )
    parser.add_argument(
        "--routers",
        type=int,
        default=0,
        help="number of routers, each of which takes front_s of the profile for a request; 0: none is ever busy",
    )


def run(args: argparse.Namespace) -> int:
    """Simulate policies, print their scores and return the exit status. Raises one of ERRORS."""
    _check(args)
    profile, origin = speeds.of_worker(args.profile, args.model, args.tensor, args.any_profile)
    setup = _setup(args, profile)
    wanted = args.policy or [named_policies.PREDICTIVE]
    names = [n for name in wanted for n in (named_policies.names(setup) if name == "all" else [name])]
    made = {name: named_policies.make(name, setup) for name in names}
    if args.plot is not None:
        plots.check(args.plot, len(made))
    with ProgressDisplay() as working:
        trace, scores, timelines, notes = _simulate(args, setup, list(made), origin, working)
    if args.json:
        json.dump(
            {"trace": trace.name, "scores": {name: asdict(s) for name, s in scores.items()}, "notes": notes},
            sys.stdout,
            indent=1,
        )
        print()
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(table(trace.name, scores))
        for note in notes:
            console.print(note)
    if args.plot:
        source = html_page.Made(getattr(args, "invocation", "disagg simulate"))
        rows = [score_row(name, s) for name, s in scores.items()]
        timeline_html.save(args.plot, trace.name, timelines, source, notes, SCORE_COLUMNS, rows)
    return 0


def _simulate(
    args: argparse.Namespace, setup: Setup, names: list[str], origin: str, working: ProgressDisplay
) -> tuple[traces.Trace, dict[str, Score], list[plots.Timeline], list[str]]:
    """Return the trace, and what became of it: the scores, the courses of time, and sentences."""
    working.say(f"reading {args.trace}")
    trace = traces.read(args.trace)
    if len(trace) * args.copies > _MOST_REQUESTS:
        raise ValueError(f"--copies: {len(trace)} requests {args.copies} times are more than {_MOST_REQUESTS:,}")
    trace = trace.times(args.copies)
    past = named_policies.read_history(args.history, args.copies) if args.history else None
    made = {name: named_policies.make(name, setup, past, args.role_flip_s) for name in names}
    scores: dict[str, Score] = {}
    timelines, notes = [], [f"profile: {origin}"]
    for name, policy in made.items():
        compiles = "" if compiled.exists() else "; the first run on a machine compiles for half a minute or more"
        working.say(f"{len(trace):,} requests with {name}{compiles}")
        cluster = Cluster(trace, setup).run(_told(policy, trace, setup, working))
        scores[name] = score(cluster)
        timelines.append(plots.Timeline(name, cluster.series.columns_as_lists()))
    if args.bounds:
        working.say("the cheapest fixed fleet, of many")
        fixed = bounds.static(trace, setup)
        working.say("the cheapest plan with foresight, of many")
        foresight = bounds.oracle(trace, setup)
        scores[f"cheapest fixed fleet: {fixed.plan}"] = fixed.score
        scores[f"with foresight: {foresight.plan}"] = foresight.score
        notes.append(f"fluid bound: {bounds.fluid_gpu_hours(trace, setup):.1f} GPU-hours")
    if args.monolithic is not None:
        working.say(f"{args.monolithic} workers that prefill and decode")
        notes.append(_monolithic(trace, setup, args.monolithic))
    return trace, scores, timelines, notes


def _told(policy: Policy, trace: traces.Trace, setup: Setup, working: ProgressDisplay) -> Policy:
    """Return the policy, which tells at each decision how much of the trace has been served."""
    decisions = 0

    def decide(seen: Observation) -> Targets:
        nonlocal decisions
        decisions += 1
        working.reach(decisions * setup.interval_s / max(trace.span_s, setup.interval_s))
        return policy(seen)

    return decide


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError, which names the argument, if a value is out of its range."""
    for name, least, most in _RANGES:
        value = getattr(args, name)
        if value is not None and not least <= value <= most:  # also refuses NaN
            raise ValueError(f"--{name.replace('_', '-')}: must be {least:g} to {most:g}, not {value:g}")
    if max(args.min_prefill, args.min_decode) > args.most:
        raise ValueError("--min-prefill, --min-decode: must not be more than --most")
    if not (args.grace_s >= 0):
        raise ValueError(f"--grace-s: must be 0 or more, or inf, not {args.grace_s:g}")
    if not 0 <= args.cold_start_s[0] <= args.cold_start_s[1] <= 86_400:
        raise ValueError("--cold-start-s: FROM must not be more than TO, neither negative, and no more than a day")
    if args.blind_s is not None and not 0 <= args.blind_s[0] < args.blind_s[1]:
        raise ValueError("--blind-s: FROM must be less than TO, and not negative")


def _setup(args: argparse.Namespace, profile: profiles.Profile) -> Setup:
    least = profile.gpus * (args.min_prefill + args.min_decode)
    if args.max_gpus is not None and args.max_gpus < least:
        raise ValueError(f"--max-gpus: {args.max_gpus} GPUs are fewer than the {least} of the smallest pools")
    return Setup(
        profile,
        tpot_s=args.tpot_ms / 1000,
        ttft_least_s=args.ttft_s,
        cold_start_s=tuple(args.cold_start_s),
        min_prefill=args.min_prefill,
        min_decode=args.min_decode,
        most=args.most,
        max_gpus=args.max_gpus,
        grace_s=args.grace_s,
        warm_workers=args.warm_workers,
        failures_per_worker_hour=args.failures_per_worker_day / 24,
        link_tokens_per_s=args.link_gbps * 1e9 / 8 / args.kv_bytes_per_token,
        blind_s=(tuple(args.blind_s),) if args.blind_s else (),
        flip_s=args.role_flip_s or 10.0,
        seed=args.seed,
        routers=args.routers,
        queue_order=args.queue_order,
    )


def _monolithic(trace: traces.Trace, setup: Setup, workers: int) -> str:
    served = monolithic_workers.serve(trace, setup.profile, workers)
    work = np.maximum(trace.prompt_tokens - trace.cached_tokens, 1).astype(float)
    p = setup.profile
    limit = np.maximum(
        setup.ttft_least_s, setup.ttft_factor * (p.a_s + p.b_s_per_token * work + p.c_s_per_token2 * work * work)
    )
    ttft, tpot = (
        served.first_s - trace.arrival_s,
        (served.last_s - served.first_s) / np.maximum(trace.output_tokens - 1, 1),
    )
    ok = (ttft <= limit) & (tpot <= setup.tpot_s)
    hours = workers * p.gpus * trace.span_s / 3600
    shares = [100 * float(x.mean()) for x in (ok, ttft <= limit, tpot <= setup.tpot_s)]
    return (
        f"monolithic, {workers} workers, always: {hours:.1f} GPU-hours, attainment {shares[0]:.2f} % "
        f"(TTFT {shares[1]:.2f}, TPOT {shares[2]:.2f}), "
        f"TTFT p50 {np.median(ttft):.3f} p99 {np.quantile(ttft, 0.99):.3f} s, "
        f"TPOT p50 {1000 * np.median(tpot):.1f} p99 {1000 * np.quantile(tpot, 0.99):.1f} ms"
    )


SCORE_COLUMNS = (
    "policy", "GPU-h", "attained %", "TTFT %", "TPOT %", "windows <95 %", "TTFT p99 s", "TPOT p99 ms", "starts",
    "dropped", "killed",
)  # fmt: skip


def score_row(name: str, s: Score) -> list[str]:
    """Return the cells of a policy in the order of SCORE_COLUMNS."""
    shares = [f"{100 * share:.2f}" for share in (s.attainment, s.ttft_attainment, s.tpot_attainment)]
    late = [_number(s.ttft_p99_s), _number(1000 * s.tpot_p99_s)]
    counts = map(str, (s.starts, s.dropped, s.killed))
    return [name, f"{s.gpu_hours:.1f}", *shares, f"{100 * s.windows_below:.1f}", *late, *counts]


def table(title: str, scores: dict[str, Score]) -> Table:
    """Return a table with one row for each policy."""
    found = Table(title=title, title_justify="left")
    for i, column in enumerate(SCORE_COLUMNS):
        found.add_column(column, justify="right" if i else "left")
    for name, s in scores.items():
        found.add_row(*score_row(name, s))
    return found


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"
