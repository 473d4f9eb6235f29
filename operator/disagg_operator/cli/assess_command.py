"""The command `disagg assess`: it reads what runs today and puts a plan beside it."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from disagg_operator.cli import plan_command
from disagg_operator.cli.progress_display import ProgressDisplay
from disagg_operator.performance.model_shape import KNOWN, ModelShape, named
from disagg_operator.planning import deployment_plan as planner
from disagg_operator.planning import report
from disagg_operator.planning.assessment import comparison, interference, live_watch, prometheus_ranges, request_load
from disagg_operator.planning.assessment.assessment_json import as_data
from disagg_operator.planning.assessment.bounded_http import BoundedHttp
from disagg_operator.planning.assessment.comparison import ServiceAssessment, Today
from disagg_operator.planning.assessment.engine_page import ASSESSED
from disagg_operator.planning.assessment.prometheus_ranges import Source
from disagg_operator.planning.assessment.readings import AssessError, Readings
from disagg_operator.planning.traffic import LatencyObjectives, Lengths, Traffic

ERRORS = (AssessError, *plan_command.ERRORS)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LEAST_WATCH_S, _MOST_S = 1.0, 31 * 86_400.0
_LEAST_SINCE_S = 600.0
# The range in which the crossover is searched is that of `disagg plan`.
_HIGHEST_PER_S = 1000.0
_NONE = Traffic(1.0, Lengths(1.0, 1.0, 1.0), Lengths(1.0, 1.0, 1.0))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "source",
        nargs="+",
        metavar="URL|TRACE|PROMETHEUS",
        help="engines (http://HOST:PORT of each, of one model), a Prometheus that scrapes them, or a file of requests "
        "as for `disagg simulate`",
    )
    parser.add_argument("--for", dest="watch", default="60s", metavar="TIME", help="watch engines for so long (60s)")
    parser.add_argument("--since", default="24h", metavar="TIME", help="read so much of a Prometheus (24h)")
    parser.add_argument(
        "--select", default="", metavar='LABEL="VALUE",...', help="read only these series of Prometheus"
    )
    parser.add_argument("--token-file", type=Path, help="file with a bearer token for the engines or the Prometheus")
    parser.add_argument("--ca-file", type=Path, help="PEM file with the certificate authorities to trust")
    parser.add_argument("--model", help="the model, as for `disagg plan` (default: the name under which it is served)")
    parser.add_argument("--rate", type=float, help="plan for so many requests a second, not for the busiest 5 minutes")
    now = parser.add_argument_group("what runs today")
    now.add_argument("--workers", type=int, help="number of workers (default: those that are found)")
    now.add_argument("--gpus-per-worker", type=int, default=1, help="GPUs of each worker (default 1)")
    now.add_argument("--worker-gpu", metavar="NAME", help="their GPU (default: the first of --gpus)")
    plan_command.objective_arguments(parser)
    plan_command.hardware_arguments(parser)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="format (default text)")


def run(args: argparse.Namespace) -> int:
    """Print an assessment and return the exit status, 1 if no plan meets the objectives.

    Raises one of ERRORS.
    """
    objectives = plan_command.objectives_of(args)
    _check(args, objectives)
    with ProgressDisplay() as working:
        found = _assess(args, objectives, working)
    if args.output == "json":
        json.dump(as_data(found), sys.stdout, indent=1)
        print()
    else:
        show(found, objectives, Console(width=None if sys.stdout.isatty() else 120))
    return 1 if found.plan is not None and found.plan.chosen is None else 0


def seconds_of(text: str, field: str, least: float = _LEAST_WATCH_S) -> float:
    """Return the seconds of a text such as 90s, 5m or 24h. Raises AssessError."""
    try:
        value = float(text.rstrip("smhd")) * _UNITS[text[-1:] if text[-1:] in _UNITS else "s"]
    except ValueError:
        value = math.nan
    if not least <= value <= _MOST_S:
        raise AssessError(f"{field}: {text!r} is not a time of {least:g}s to {_MOST_S / 86_400:g}d, such as 90s or 24h")
    return value


def _check(args: argparse.Namespace, objectives: LatencyObjectives) -> None:
    """Raise one of ERRORS, which names the argument, before anything is watched."""
    for name in ("workers", "gpus_per_worker"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= 100_000:
            raise AssessError(f"--{name.replace('_', '-')}: must be 1 to 100,000, not {value}")
    if args.rate is not None and not (math.isfinite(args.rate) and 0 < args.rate <= 1e6):
        raise AssessError(f"--rate: must be more than 0 and at most a million, not {args.rate:g}")
    seconds_of(args.watch, "--for")
    seconds_of(args.since, "--since", _LEAST_SINCE_S)
    Source("", args.select)
    shape = plan_command.model_of(args.model) if args.model else next(iter(KNOWN.values()))
    # The profiles are those of the model, which is not known yet if it is not given.
    without = args if args.model else argparse.Namespace(**{**vars(args), "profile": []})
    _today_gpu(args, plan_command.question_of(without, shape, _NONE, objectives))


def _assess(args: argparse.Namespace, objectives: LatencyObjectives, working: ProgressDisplay) -> ServiceAssessment:
    readings, found = None, None
    if all(_is_url(source) for source in args.source):
        readings = asyncio.run(_read(args, objectives.tpot_s, working))
        found = request_load.of_readings(readings, objectives.percentile)
    elif len(args.source) == 1:
        found = _of_trace(Path(args.source[0]), objectives, working)
    else:
        raise AssessError("give one file, one Prometheus, or the URLs of engines")
    served = readings.models[0] if readings is not None and readings.models else ""
    plan = _plan(args, served, found, objectives, working)
    workers = args.workers or (readings.workers if readings is not None else 0)
    histograms = readings.histograms if readings is not None else {}
    return ServiceAssessment(
        " ".join(args.source),
        readings.engine if readings is not None else "",
        served,
        found,
        interference.judge(readings, 1 - objectives.percentile) if readings is not None else _UNSEEN,
        comparison.attained(histograms.get("ttft"), histograms.get("tpot"), objectives),
        _today(args, workers, plan) if workers else None,
        plan,
        None if plan is None else comparison.kind_at_least(plan, found),
    )


_UNSEEN = interference.Interference("unknown", "a log of requests has no times of tokens", math.inf)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _of_trace(path: Path, objectives: LatencyObjectives, working: ProgressDisplay) -> request_load.RequestLoad:
    working.say(f"reading {path}")
    from disagg_operator.simulation import traces

    t = traces.read(path)
    return request_load.of_requests(
        t.arrival_s, t.prompt_tokens, t.cached_tokens, t.output_tokens, objectives.percentile
    )  # fmt: skip


async def _read(args: argparse.Namespace, tpot_s: float, working: ProgressDisplay) -> Readings:
    """Return what engines or a Prometheus told. Raises AssessError."""
    urls = list(dict.fromkeys(args.source))
    if len(urls) > live_watch.MOST_ENGINES:
        raise AssessError(f"{len(urls)} engines are given, {live_watch.MOST_ENGINES} at most; read a Prometheus")
    seconds = seconds_of(args.watch, "--for")
    since_s = seconds_of(args.since, "--since", _LEAST_SINCE_S)
    token = args.token_file.read_text(encoding="utf-8").strip() if args.token_file else None
    async with BoundedHttp(token, args.ca_file) as http:
        working.say(f"asking {urls[0]}")
        engine = await live_watch.engine_at(http, urls[0])
        if engine is not None:
            working.say(f"watching {len(urls)} {'engine' if len(urls) == 1 else 'engines'} for {seconds:g} s")
            return _one_model(await live_watch.watch(http, urls, engine, seconds, tpot_s, working.reach), "")
        source = Source(urls[0], args.select)
        try:
            found = await prometheus_ranges.engine_in(http, source)
        except AssessError as error:
            engines = " or ".join(ASSESSED)
            raise AssessError(f"neither a Prometheus nor an engine with metrics of {engines}: {error}") from None
        if found is None:
            raise AssessError(f"{urls[0]}: has no series of an engine in the last hour; see --select")
        if len(urls) > 1:
            raise AssessError(f"{urls[0]}: is a Prometheus: give it alone")
        engine, models = found
        if len(models) > 1:
            raise AssessError(_several(models))
        working.say(f"reading {since_s / 3600:g} h of {models[0] or 'a model'} from {urls[0]}")
        readings = await prometheus_ranges.read(http, source, engine, time.time(), since_s, tpot_s, working.reach)
        return _one_model(readings, models[0])


def _several(models: list[str]) -> str:
    return f"there are several models ({', '.join(models[:5])}): choose one by --select 'model_name=\"{models[0]}\"'"


def _one_model(readings: Readings, name: str) -> Readings:
    if len(readings.models) > 1:
        raise AssessError(f"the engines serve several models: {', '.join(readings.models)}")
    return readings if readings.models or not name else replace(readings, models=(name,))


def _plan(
    args: argparse.Namespace,
    served: str,
    found: request_load.RequestLoad,
    objectives: LatencyObjectives,
    working: ProgressDisplay,
) -> planner.Plan | None:
    """Return the plan, or None if nobody says which model it is for."""
    shape: ModelShape | None = plan_command.model_of(args.model) if args.model else named(served)
    if shape is None:
        return None
    question = plan_command.question_of(args, shape, found.traffic(args.rate), objectives)
    working.say(f"planning {question.model.name}")
    return planner.make_plan(question, max(_HIGHEST_PER_S, 10 * question.traffic.requests_per_s))


def _today(args: argparse.Namespace, workers: int, plan: planner.Plan | None) -> Today:
    gpus = workers * args.gpus_per_worker
    if plan is None:
        return Today(workers, args.gpus_per_worker, args.worker_gpu or "GPU", args.workers is None, float(gpus))
    name = _today_gpu(args, plan.question)
    cost = gpus * plan.question.prices_per_hour.get(name, 1.0)
    return Today(workers, args.gpus_per_worker, name, args.workers is None, cost)


def _today_gpu(args: argparse.Namespace, question: planner.Question) -> str:
    name = plan_command.gpus_of(args.worker_gpu, "--worker-gpu")[0].name if args.worker_gpu else question.gpus[0].name
    if question.prices_per_hour and name not in question.prices_per_hour:
        raise AssessError(f"--worker-gpu: the price of {name} is missing: --gpus must have it, too")
    return name


# ---- output ----


def show(a: ServiceAssessment, objectives: LatencyObjectives, console: Console) -> None:
    """Print an assessment on a terminal."""
    sentence = comparison.advice(a)[1]
    inputs = Table.grid(padding=(0, 2))
    for name, value in _rows(a, objectives):
        inputs.add_row(f"[dim]{name}[/]", value)
    console.print(inputs)
    if a.workload.hours:
        clock = "hour (UTC)" if a.workload.clock else "hour"
        rows = [[f"{h.hour:02d}", f"{h.mean_per_s:.2f}", f"{h.busiest_per_s:.2f}"] for h in a.workload.hours]
        console.print(plan_command.table_of("Requests/s", (clock, "mean", "busiest 5 minutes"), rows))
    console.print(f"\n{comparison.interference_words(a.interference)}\n", highlight=False)
    if a.plan is not None:
        console.print(plan_command.table_of("", report.DEPLOYMENT_COLUMNS, _deployments(a, a.plan)))
    console.print(f"[bold]{sentence}[/]\n", highlight=False)
    for remark in comparison.remarks(a):
        console.print(f"- {remark}", highlight=False)


def _rows(a: ServiceAssessment, objectives: LatencyObjectives) -> list[tuple[str, str]]:
    w, p = a.workload, f"p{100 * objectives.percentile:g}"
    served = f"{a.engine} {a.model}".strip()
    bursts = "not visible in what was read" if w.bursts is None else f"dispersion {w.bursts:.2f} (1: independent)"
    cached = "came from a cache" if a.engine else "were cached, by the log"
    rows = [("source", a.source), *([("served", served)] if served else [])]
    rows += [
        ("requests", f"{w.requests:,.0f} in {w.span_s:,.0f} s: {w.mean_per_s:.3g}/s, busiest {w.busiest_per_s:.3g}/s"),
        ("bursts", bursts),
        *((name, _lengths(found, p)) for name, found in (("prompts", w.prompt), ("answers", w.answer))),
        ("prefix share", f"{100 * w.cached_share:.1f} % of the prompt tokens {cached}"),
    ]
    if a.engine:
        shares = f"TTFT {comparison.share_words(a.attained.ttft)}, TPOT {comparison.share_words(a.attained.tpot)}"
        rows.append(("within objectives", f"{shares} of the requests (asked: {100 * objectives.percentile:g} %)"))
    if a.today is not None:
        counted = "found" if a.today.found else "given"
        workers = f"{a.today.workers} worker{'s' if a.today.workers > 1 else ''}"
        rows.append(("today", f"{workers} ({counted}) of {a.today.gpus_per_worker} {a.today.gpu}"))
    return rows


def _lengths(found: request_load.LengthSummary, p: str) -> str:
    words = [f"{name} {comparison.between(b)}" for name, b in (("half have up to", found.median), (p, found.tail))]
    return f"mean {found.mean:,.0f} tokens, {', '.join(words)}"


def _deployments(a: ServiceAssessment, plan: planner.Plan) -> list[list[str]]:
    names = {"disaggregated": "two pools", "monolithic": "one pool"}
    rows = [report.deployment_row(plan, names[name], d) for name, d in report.both(plan)]
    if a.today is not None:
        per_gpu = f"{plan.question.traffic.output_tokens_per_s / a.today.gpus:.1f}"
        rows.insert(0, ["today", str(a.today.gpus), report.money(plan, a.today.cost_per_hour), per_gpu, "-", "-"])
    return rows
