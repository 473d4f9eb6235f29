"""The command `disagg explain`: it shows what the autoscaler saw and decided, and why."""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from disagg_operator.autoscaling.policy.observation import Pods
from disagg_operator.autoscaling.policy.predictive import Settings
from disagg_operator.autoscaling.records import decision_records, explanation
from disagg_operator.autoscaling.records.decision_records import Step
from disagg_operator.cli import decision_source, html_page, plots, timeline_html
from disagg_operator.status import zero_state

ERRORS = decision_source.ERRORS
_QUIET_S = 300.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    decision_source.arguments(parser)
    parser.add_argument(
        "--all", action="store_true", help="show every step, not only changes and one step in five minutes"
    )


def run(args: argparse.Namespace) -> int:
    """Print the decisions and return the exit status. Raises one of ERRORS."""
    if args.plot:
        plots.check(args.plot, 1)
    if (zero := zero_state.told(decision_source.status_of(args), time.time())) is not None:
        print(zero)
    try:
        runs = decision_source.load(args)
    except decision_source.SourceError:
        if zero is None:
            raise
        return 0
    # Sorted, so that a clock that was set back has no effect.
    everything = sorted(decision_records.steps_of(runs), key=lambda s: s.observation.now_s)
    begin_s = everything[-1].observation.now_s - decision_source.seconds(args.since)
    steps = [s for s in everything if s.observation.now_s >= begin_s]
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table(args.source, steps if args.all else worth_telling(steps)))
    for sentence in sentences(steps):
        console.print(sentence)
    console.print(standing(everything[-1], runs[-1].settings))
    if args.plot:
        timeline = plots.Timeline("as it was decided", decision_records.columns(steps))
        made = html_page.Made(getattr(args, "invocation", "disagg explain"))
        timeline_html.save(args.plot, args.source, [timeline], made, sentences(steps))
    return 0


def standing(step: Step, settings: Settings) -> Table:
    """Return a table with what the last decision says of each pool."""
    at = datetime.datetime.fromtimestamp(step.observation.now_s, datetime.UTC).strftime("%H:%M:%S")
    found = Table(title=f"\nThe last decision, {at} UTC", title_justify="left", show_header=False)
    for pool, lines in explanation.of_step(step, settings).items():
        for i, (word, sentence) in enumerate(lines):
            found.add_row("" if i else pool, word, sentence, end_section=i == len(lines) - 1)
    return found


def worth_telling(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that change something or have a new reason, and one in five minutes."""
    out: list[Step] = []
    before: tuple[object, ...] = ()
    for step in steps:
        now = (step.reasons, step.decided)
        moves = any(n != _pods(step, pool).replicas for pool, n in step.decided.items())
        quiet = bool(out) and step.observation.now_s - out[-1].observation.now_s < _QUIET_S
        if moves or now != before or not quiet or step is steps[-1]:
            out.append(step)
        before = now
    return out


def table(title: str, steps: Sequence[Step]) -> Table:
    """Return a table with one row for each step."""
    found = Table(title=f"{title}: decisions (UTC)", title_justify="left")
    for column in (
        "time",
        "requests/s",
        "prompt tok/s",
        "output tok/s",
        "queued",
        "TTFT ok %",
        "TPOT ok %",
        "prefill",
        "decode",
        "why",
    ):
        found.add_column(column, justify="left" if column in ("time", "why") else "right", overflow="fold")
    for step in steps:
        o, p, d = step.observation, step.observation.prefill, step.observation.decode
        interval_s = o.interval_s or math.nan
        rates = [number(v / interval_s) for v in (p.arrivals, p.prompt_tokens, d.generated_tokens)]
        queued = f"{number(p.waiting_requests)}+{number(d.waiting_requests)}"
        shares = [
            number(100 * ok / total) if total > 0 else "-"
            for ok, total in ((p.ttft_ok, p.ttft_total), (d.tpot_ok, d.tpot_total))
        ]
        sizes = [size(_pods(step, pool), step.decided.get(pool)) for pool in ("prefill", "decode")]
        time = datetime.datetime.fromtimestamp(o.now_s, datetime.UTC).strftime("%m-%d %H:%M:%S")
        found.add_row(
            time, *rates, queued, *shares, *sizes, step.targets.reason + (" (dry run)" if step.dry_run else "")
        )
    return found


def size(pods: Pods, wanted: int | None) -> str:
    """Return the ready and the desired workers of a pool, and the decided number if it differs."""
    now = f"{pods.ready}/{pods.replicas}" + (f" ({len(pods.starting_ages_s)} start)" if pods.starting_ages_s else "")
    return now if wanted is None or wanted == pods.replicas else f"{now} -> {wanted}"


def sentences(steps: Sequence[Step]) -> list[str]:
    """Return a summary of the steps in sentences."""
    if not steps:
        return []
    span_s = steps[-1].observation.now_s - steps[0].observation.now_s
    out = [f"{len(steps)} steps in {span_s / 60:.0f} minutes, {sum(s.blind for s in steps)} of them without metrics."]
    for pool in ("prefill", "decode"):
        moved = [(s.decided[pool], _pods(s, pool).replicas) for s in steps if pool in s.decided]
        ups, downs = sum(a > b for a, b in moved), sum(a < b for a, b in moved)
        ready = [_pods(s, pool).ready for s in steps]
        if moved:
            out.append(f"{pool}: up {ups} times, down {downs} times; {min(ready)} to {max(ready)} workers were ready.")
    for name, pairs in (
        ("first token", [(s.observation.prefill.ttft_ok, s.observation.prefill.ttft_total) for s in steps]),
        ("time per token", [(s.observation.decode.tpot_ok, s.observation.decode.tpot_total) for s in steps]),
    ):
        ok, total = (sum(pair[i] for pair in pairs if not math.isnan(pair[1])) for i in (0, 1))
        if total:
            out.append(f"{100 * ok / total:.2f} % of {total:.0f} requests kept the objective of the {name}.")
    return out


def _pods(step: Step, pool: str) -> Pods:
    return step.observation.prefill.pods if pool == "prefill" else step.observation.decode.pods


def number(value: float) -> str:
    """Return a number with about three digits, or a question mark if it is not known."""
    if math.isnan(value):
        return "?"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
