"""The command `disagg replay`: it applies a policy to recorded observations, offline.

It shows the steps in which the policy decides differently.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from disagg_operator.autoscaling.policy import queue_pools
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.autoscaling.policy.predictive import Settings
from disagg_operator.autoscaling.policy.queue_pools import QueueStart
from disagg_operator.autoscaling.records import codec, decision_records
from disagg_operator.autoscaling.records.decision_records import Policy, Run, Step
from disagg_operator.cli import decision_source, html_page, plots, timeline_html
from disagg_operator.cli.progress_display import ProgressDisplay
from disagg_operator.controller.acceptance import DEFAULT_TARGETS
from disagg_operator.simulation import named_policies
from disagg_operator.simulation.cluster import Setup

ERRORS = (*decision_source.ERRORS, named_policies.PolicyError)
QUEUE = "queue"
T = TypeVar("T")
_MOST_ROWS = 200


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    decision_source.arguments(parser)
    parser.add_argument(
        "--policy", help="predictive, queue, or another policy of `disagg simulate` (default: the one that decided)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="K=V",
        help="a setting of predictive, such as budget=0.01 or decode.most=8, or of queue, such as decode.target=16",
    )


def run(args: argparse.Namespace) -> int:
    """Print the differences and return the exit status, 0 also if there are any.

    Raises one of ERRORS.
    """
    if args.plot:
        plots.check(args.plot, 1)
    runs = decision_source.load(args)
    changes = [parse_change(text) for text in args.set]
    if changes and args.policy not in (None, QUEUE, named_policies.PREDICTIVE):
        raise ValueError("--set: changes settings of predictive and queue alone")
    with ProgressDisplay() as display:
        display.say(f"deciding again on {sum(len(run.steps) for run in runs):,} observations")
        targets = decision_records.replay(runs, lambda one: policy_of(args.policy, one, changes))
    everything = sorted(
        zip(decision_records.steps_of(runs), targets, strict=True), key=lambda pair: pair[0].observation.now_s
    )
    since_s = everything[-1][0].observation.now_s - decision_source.seconds(args.since)
    pairs = [(s, t) for s, t in everything if s.observation.now_s >= since_s]
    console = Console(width=None if sys.stdout.isatty() else 180)
    other = [(s, t) for s, t in pairs if (t.prefill, t.decode) != (s.targets.prefill, s.targets.decode)]
    what = ", ".join([args.policy or " and ".join(dict.fromkeys(map(name_of, runs))), *args.set])
    if other:
        console.print(table(what, other[:_MOST_ROWS]))
    console.print(summary(what, pairs, len(other)))
    if args.plot:
        steps, new = [s for s, _ in pairs], [t for _, t in pairs]
        timelines = [plots.Timeline(f"{what} (what was wanted)", decision_records.columns(steps, new))]
        if args.plot.suffix.lower() in plots.PAGES:
            timelines.insert(0, plots.Timeline("as it was decided", decision_records.columns(steps)))
        made = html_page.Made(getattr(args, "invocation", "disagg replay"))
        timeline_html.save(args.plot, args.source, timelines, made, summary(what, pairs, len(other)).splitlines())
    return 0


def name_of(run: Run) -> str:
    """Return the name of the policy that decided."""
    return named_policies.PREDICTIVE if run.queue is None else QUEUE


def policy_of(name: str | None, run: Run, changes: Sequence[tuple[str, Any]]) -> Policy:
    """Return a policy in its state at the beginning of a run; without a name, the one that decided.

    Raises PolicyError or ValueError.
    """
    name = name or name_of(run)
    if name == QUEUE:
        return decision_records.queue_policy(queue_of(run, changes))
    if name != named_policies.PREDICTIVE:
        s = run.settings
        least, most = (s.prefill.least, s.decode.least), max(s.prefill.most, s.decode.most)
        setup = Setup(s.profile, tpot_s=s.tpot_s, min_prefill=least[0], min_decode=least[1], most=most)
        other = named_policies.make(name, setup)
        return lambda step: other(step.observation)
    settings = run.settings
    for path, value in changes:
        settings = changed(settings, path, value)
    return decision_records.predictive_policy(settings, run.state)


def queue_of(run: Run, changes: Sequence[tuple[str, Any]]) -> QueueStart:
    """Return the initial state of the policy queue. Raises ValueError.

    It is the recorded state, or has the default targets within the bounds of another policy.
    """
    queue = run.queue
    if queue is None:
        bounds = {"prefill": run.settings.prefill, "decode": run.settings.decode}
        queue = QueueStart({pool: PoolRules(b.least, b.most, DEFAULT_TARGETS[pool]) for pool, b in bounds.items()}, {})
    for path, value in changes:
        queue = QueueStart(_changed(dict[str, PoolRules], queue.pools, path, value), queue.states)
    try:
        queue_pools.check(queue.pools)
    except ValueError as error:
        raise ValueError(f"--set {error}") from None
    return queue


def parse_change(text: str) -> tuple[str, Any]:
    """Return the name and the value in a text such as `budget=0.01`. Raises ValueError."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set: {text!r} is not K=V")
    try:
        return path, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise ValueError(f"--set {path}: {value!r} is no number, None or tuple") from None


def changed(settings: Settings, path: str, value: Any) -> Settings:
    """Return the settings with the field at `path` replaced. Raises ValueError, which names it."""
    return _changed(Settings, settings, path, value)


def _changed(kind: Any, settings: T, path: str, value: Any) -> T:
    raw = codec.plain(settings)
    inner, *rest = raw, *path.split(".")
    for part in rest[:-1]:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or rest[-1] not in inner or (kind is not Settings and len(rest) != 2):
        known = ", ".join(raw)
        raise ValueError(f"--set {path}: no such setting; there are {known}, and their parts after a dot")
    inner[rest[-1]] = codec.plain(value)
    found: T = codec.parse(kind, raw, "--set")
    return found


def table(title: str, pairs: Sequence[tuple[Step, Targets]]) -> Table:
    """Return a table with one row for each step in which the policies differ."""
    found = Table(title=f"{title}: where it differs (UTC)", title_justify="left")
    for column in ("time", "prefill was", "now", "decode was", "now ", "why now"):
        found.add_column(column, justify="left" if column in ("time", "why now") else "right", overflow="fold")
    for step, target in pairs:
        time = datetime.datetime.fromtimestamp(step.observation.now_s, datetime.UTC).strftime("%m-%d %H:%M:%S")
        sizes = (step.targets.prefill, target.prefill, step.targets.decode, target.decode)
        found.add_row(time, *map(str, sizes), target.reason)
    return found


def summary(what: str, pairs: Sequence[tuple[Step, Targets]], differing: int) -> str:
    """Return the difference in one line.

    The worker-hours are those of the wanted workers, not of those that would have run.
    """
    hours = [0.0, 0.0]
    for step, target in pairs:
        interval_h = step.observation.interval_s / 3600
        hours[0] += interval_h * (step.targets.prefill + step.targets.decode)
        hours[1] += interval_h * (target.prefill + target.decode)
    return (
        f"{what}: differs in {differing} of {len(pairs)} steps; wanted {hours[1]:.2f} worker-hours instead of "
        f"{hours[0]:.2f}."
    )
