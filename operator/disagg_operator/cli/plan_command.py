"""The command `disagg plan`: it finds the cheapest deployment for a traffic, in two pools or one.

It prints the GPUs and replicas that meet the objectives.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from disagg_operator.cli import speeds
from disagg_operator.cli.progress_display import ProgressDisplay
from disagg_operator.engines import BY_NAME, DEFAULT
from disagg_operator.performance import kernel_tables
from disagg_operator.performance import profile as profiles
from disagg_operator.performance.config_json import from_config
from disagg_operator.performance.hardware import GPUS, NETWORKS, Gpu
from disagg_operator.performance.model_shape import KNOWN, ModelShape, PlanError, named
from disagg_operator.performance.roof_line import EFFICIENCIES
from disagg_operator.planning import deployment_plan as planner
from disagg_operator.planning import manifest, network_load, report
from disagg_operator.planning.traffic import LatencyObjectives, LogNormal, Traffic, log_normal

ERRORS = (PlanError, profiles.ProfileError, ValueError, OSError)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model", help=f"config.json of a Hugging Face model, its folder, or a known name: {', '.join(sorted(KNOWN))}"
    )
    _traffic_arguments(parser)
    hardware_arguments(parser)
    parser.add_argument(
        "--highest-rate",
        type=float,
        help="highest rate at which the crossover is searched (default: 1000, or 10 x --rate if that is more)",
    )
    _output_arguments(parser)


def _traffic_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("traffic: --rate with lengths, or --trace")
    what.add_argument("--rate", type=float, metavar="PER_S", help="requests a second")
    what.add_argument(
        "--prompt-tokens",
        metavar="MEAN[,P99]",
        help="uncached tokens of a prompt, log-normally distributed (without P99: coefficient of variation 1)",
    )
    what.add_argument("--output-tokens", metavar="MEAN[,P99]", help="tokens of an answer")
    what.add_argument(
        "--trace",
        type=Path,
        help="file of requests as for `disagg simulate`; sizes are found by simulating the whole trace",
    )
    what.add_argument("--copies", type=int, default=1, help="number of times that each request of the trace is served")
    what.add_argument("--simulate", action="store_true", help="check the sizes by simulating Poisson arrivals")
    objective_arguments(parser)


def objective_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of latency objectives."""
    goals = parser.add_argument_group("objectives")
    goals.add_argument("--ttft", type=float, default=1.0, metavar="S", help="time to first token (default 1)")
    goals.add_argument("--tpot-ms", type=float, default=50.0, metavar="MS", help="time per output token (default 50)")
    goals.add_argument(
        "--percentile", type=float, default=99.0, help="percentage of requests that must meet them (default 99)"
    )


def hardware_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the available hardware, and of the model's widths."""
    have = parser.add_argument_group("hardware")
    have.add_argument("--gpus", metavar="NAME,...", help=f"GPUs of both pools: {', '.join(GPUS)} (default H100)")
    have.add_argument("--prefill-gpus", metavar="NAME,...", help="GPUs of the prefill pool, instead of --gpus")
    have.add_argument("--decode-gpus", metavar="NAME,...", help="GPUs of the decode pool, instead of --gpus")
    have.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="GPU=PER_HOUR",
        help="price of one GPU; without prices, GPU-hours are counted",
    )
    have.add_argument(
        "--network", default="rdma-400", choices=NETWORKS, help="network that moves the KV cache (default rdma-400)"
    )
    have.add_argument(
        "--efficiency",
        default="tuned",
        choices=EFFICIENCIES,
        help="efficiency of the roof line: that of a current engine, or of one of 2023",
    )
    have.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="GPU=FILE",
        help="measured profile of a GPU (see `disagg profile`), or aisimulate:SYSTEM/BACKEND: the kernel tables of "
        f"AISimulate for an inference engine on {', '.join(kernel_tables.SYSTEMS)}",
    )
    have.add_argument(
        "--any-profile", action="store_true", help="also accept profiles of another model or of other hardware"
    )
    have.add_argument("--weight-bits", type=int, choices=(4, 8, 16), help="bits of a weight, instead of the model's")
    have.add_argument("--kv-bits", type=int, choices=(8, 16), default=16, help="bits of an element of the KV cache")


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("output, in addition to the table")
    out.add_argument("--json", action="store_true", help="print JSON instead of the table")
    out.add_argument("--yaml", type=Path, metavar="FILE", help="write a DisaggDeployment that can be applied")
    out.add_argument(
        "--engine", default=DEFAULT.name, choices=[*BY_NAME], help=f"its inference engine (default {DEFAULT.name})"
    )
    out.add_argument("--name", default="chat", help="name of the DisaggDeployment (default chat)")
    out.add_argument("--uri", help="URI of its model (default: hf:// and the model's name, if that is ORG/NAME)")
    out.add_argument("--network-attachment", metavar="NAME", help="NetworkAttachmentDefinition for its KV transfers")
    out.add_argument("--rdma-resource", metavar="NAME", help="extended resource of the RDMA devices of the nodes")
    out.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots, in one file")


def run(args: argparse.Namespace) -> int:
    """Print a plan and return the exit status, 1 if no deployment meets the objectives.

    Raises one of ERRORS.
    """
    for path in (args.yaml, args.html):
        if path is not None and not path.absolute().parent.is_dir():
            raise PlanError(f"{path}: there is no folder {path.parent}")
    model = model_of(args.model)
    wishes = _wishes(args, model) if args.yaml else None
    sped = _speeds(args, model)
    question, trace = _question(args, model, sped.profiles)
    highest = args.highest_rate or max(1000.0, 10 * question.traffic.requests_per_s)
    if not (math.isfinite(highest) and highest > planner.LOWEST_PER_S):
        raise PlanError(f"--highest-rate: must be more than {planner.LOWEST_PER_S}")
    with ProgressDisplay() as working:
        plan = _plan(args, question, trace, highest, working)
    if args.json:
        json.dump(report.as_data(plan), sys.stdout, indent=1)
        print()
    else:
        show(plan, Console(width=None if sys.stdout.isatty() else 120), sped.words)
    if args.yaml and wishes is not None:
        args.yaml.write_text(_yaml(plan, wishes), encoding="utf-8")
    if args.html:
        from disagg_operator.cli import html_page, plan_html

        made = html_page.Made(getattr(args, "invocation", "disagg plan"), sped.words)
        plan_html.write(args.html, plan, made)
    return 0 if plan.chosen else 1


def _plan(
    args: argparse.Namespace, question: planner.Question, trace: Any, highest: float, working: ProgressDisplay
) -> planner.Plan:
    working.say(f"planning {question.model.name} at rates up to {highest:g} requests/s")
    plan = planner.make_plan(question, highest)
    if trace is None:
        return plan
    from disagg_operator.planning import simulated_crossover, simulation_check
    from disagg_operator.simulation import compiled

    compiles = "" if compiled.exists() else "; the first run on a machine compiles for half a minute or more"
    working.say(f"serving {len(trace):,} requests of {trace.name} on both{compiles}")
    plan = simulation_check.check(plan, trace)
    if args.trace is not None:
        return plan
    prompt, output = _lengths(args.prompt_tokens, "--prompt-tokens"), _lengths(args.output_tokens, "--output-tokens")
    return simulated_crossover.with_crossover(plan, prompt, output, working.say)


# ---- from arguments to a question ----


def _question(
    args: argparse.Namespace, model: ModelShape, measured: Mapping[str, list[profiles.Profile]]
) -> tuple[planner.Question, Any]:
    objectives = objectives_of(args)
    traffic, trace = _traffic(args, objectives.percentile)
    return question_of(args, model, traffic, objectives, measured), trace


def objectives_of(args: argparse.Namespace) -> LatencyObjectives:
    """Return the latency objectives. Raises PlanError."""
    if not 50 <= args.percentile < 100:
        raise PlanError(f"--percentile: must be 50 or more and less than 100, not {args.percentile:g}")
    for name, value in (("--ttft", args.ttft), ("--tpot-ms", args.tpot_ms)):
        if not (math.isfinite(value) and value > 0):
            raise PlanError(f"{name}: must be more than 0")
    return LatencyObjectives(args.ttft, args.tpot_ms / 1000, args.percentile / 100)


def question_of(
    args: argparse.Namespace,
    model: ModelShape,
    traffic: Traffic,
    objectives: LatencyObjectives,
    measured: Mapping[str, list[profiles.Profile]] | None = None,
) -> planner.Question:
    """Return the question that the arguments of the hardware ask about a traffic.

    `measured` are the profiles of GPUs, if they have been read already. Raises one of ERRORS.
    """
    prefill = gpus_of(args.prefill_gpus, "--prefill-gpus") if args.prefill_gpus else []
    decode = gpus_of(args.decode_gpus, "--decode-gpus") if args.decode_gpus else []
    everywhere = [] if prefill and decode and not args.gpus else gpus_of(args.gpus or _usual_gpus(args), "--gpus")
    gpus = list({g.name: g for g in [*everywhere, *prefill, *decode]}.values())
    names = frozenset(g.name for g in everywhere)
    model = model.at_bits(args.weight_bits, args.kv_bits)
    return planner.Question(
        model,
        traffic,
        objectives,
        tuple(gpus),
        NETWORKS[args.network],
        _prices(args.price, gpus),
        EFFICIENCIES[args.efficiency],
        _speeds(args, model).profiles if measured is None else measured,
        frozenset(g.name for g in prefill) or names,
        frozenset(g.name for g in decode) or names,
    )


def _usual_gpus(args: argparse.Namespace) -> str:
    """Return the GPUs of a plan that names none: those of its kernel tables, or H100."""
    return ",".join(source.gpu.name for source in _tables(args).values()) or "H100"


def _traffic(args: argparse.Namespace, percentile: float) -> tuple[Traffic, Any]:
    """Return the traffic, and the trace to simulate if there is one."""
    if args.trace is not None:
        if args.rate is not None or args.prompt_tokens or args.output_tokens:
            raise PlanError("--trace: brings rate and lengths itself; omit --rate, --prompt-tokens and --output-tokens")
        if args.copies < 1:
            raise PlanError("--copies: must be 1 or more")
        from disagg_operator.planning import simulation_check
        from disagg_operator.simulation import traces

        trace = traces.read(args.trace).times(args.copies)
        return simulation_check.traffic_of(trace, percentile), trace
    if args.rate is None or not args.prompt_tokens or not args.output_tokens:
        raise PlanError("give --rate, --prompt-tokens and --output-tokens, or --trace")
    if not (math.isfinite(args.rate) and 0 < args.rate <= 1e6):
        raise PlanError(f"--rate: must be more than 0 and at most a million, not {args.rate:g}")
    prompt, output = _lengths(args.prompt_tokens, "--prompt-tokens"), _lengths(args.output_tokens, "--output-tokens")
    traffic = Traffic(args.rate, prompt.lengths(percentile), output.lengths(percentile))
    if not args.simulate:
        return traffic, None
    from disagg_operator.planning import simulation_check

    return traffic, simulation_check.poisson(args.rate, prompt, output)


def _lengths(text: str, field: str) -> LogNormal:
    parts = text.split(",")
    try:
        numbers = [float(p) for p in parts]
    except ValueError:
        raise PlanError(f"{field}: {text!r} is not MEAN or MEAN,P99") from None
    if len(numbers) > 2:
        raise PlanError(f"{field}: {text!r} is not MEAN or MEAN,P99")
    return log_normal(numbers[0], numbers[1] if len(numbers) == 2 else None, field)


def gpus_of(text: str, field: str) -> list[Gpu]:
    """Return the GPUs of a list of names. Raises PlanError naming `field`."""
    by_name = {name.lower(): gpu for name, gpu in GPUS.items()}
    found = []
    for name in text.split(","):
        if name.strip().lower() not in by_name:
            raise PlanError(f"{field}: {name.strip()!r} is none of {', '.join(GPUS)}")
        found.append(by_name[name.strip().lower()])
    return found


def _pairs(texts: list[str], field: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value:
            raise PlanError(f"{field}: {text!r} is not GPU=VALUE")
        found[gpus_of(name, field)[0].name] = value
    return found


def _prices(texts: list[str], gpus: list[Gpu]) -> dict[str, float]:
    """Return the prices, which must be given for all GPUs or for none. Raises PlanError."""
    found = {}
    for name, text in _pairs(texts, "--price").items():
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = math.nan
        if not (math.isfinite(found[name]) and found[name] > 0):
            raise PlanError(f"--price: {name}={text}: must be more than 0")
    missing = [g.name for g in gpus if g.name not in found]
    if found and missing:
        raise PlanError(f"--price: the price of {', '.join(missing)} is missing; give all or none")
    return found


def _tables(args: argparse.Namespace) -> dict[str, kernel_tables.TableSource]:
    return {text: source for text in args.profile if (source := kernel_tables.source_of(text)) is not None}


def _speeds(args: argparse.Namespace, model: ModelShape) -> speeds.Speeds:
    tables = _tables(args)
    files = _pairs([text for text in args.profile if text not in tables], "--profile")
    asked = model.at_bits(args.weight_bits, args.kv_bits)
    return speeds.of_model(files, list(tables.values()), asked, args.any_profile)


def model_of(text: str) -> ModelShape:
    """Return the shape of the model as it is in its checkpoint. Raises PlanError."""
    shape = named(text)
    if shape is None:
        path = Path(text)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            known = ", ".join(sorted(KNOWN))
            raise PlanError(f"model: {text!r} is neither a config.json, a folder with one, nor one of {known}")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PlanError(f"{path}: {error}") from None
        if not isinstance(raw, dict):
            raise PlanError(f"{path}: must hold one JSON object")
        shape = from_config(raw, path.resolve().parent.name if path.name == "config.json" else path.stem)
    return shape


def _wishes(args: argparse.Namespace, model: ModelShape) -> manifest.Wishes:
    uri = args.uri
    if uri is None:
        if args.model.count("/") != 1 or named(args.model) is None:
            raise PlanError(
                "--yaml: needs --uri, where the model's checkpoint is (hf://ORG/NAME, pvc://CLAIM/PATH or file:///PATH)"
            )
        uri = f"hf://{args.model}"
    wishes = manifest.Wishes(
        args.name, uri, args.rdma_resource, args.network_attachment, scaled=args.trace is not None,
        rounded_bits=args.weight_bits if args.weight_bits != model.weight_bits else None, kv_bits=args.kv_bits,
        engine=args.engine,
    )  # fmt: skip
    manifest.check(wishes, model)
    return wishes


# ---- output ----


def _yaml(plan: planner.Plan, wishes: manifest.Wishes) -> str:
    lines = [report.headline(plan), *report.notes(plan)]
    if plan.recommended == "monolithic":
        lines.insert(1, "A DisaggDeployment has two pools; this is the disaggregated half of the comparison.")
    head = "".join(f"# {line}\n" for line in lines)
    return head + yaml.safe_dump(manifest.deployment(plan, wishes), sort_keys=False)


def show(plan: planner.Plan, console: Console, profiled: Sequence[str] = ()) -> None:
    """Print a plan on a terminal, with where its profiles come from."""
    inputs = Table.grid(padding=(0, 2))
    for name, value in report.question_rows(plan):
        inputs.add_row(f"[dim]{name}[/]", value)
    console.print(inputs)
    console.print(f"\n[bold]{report.headline(plan)}[/]\n", highlight=False)
    console.print(
        table_of("", report.DEPLOYMENT_COLUMNS, [report.deployment_row(plan, name, d) for name, d in report.both(plan)])
    )
    for name, d in report.both(plan):
        if isinstance(d, planner.Deployment):
            console.print(table_of(name, report.POOL_COLUMNS, [report.pool_row(p, d.chunk_tokens) for p in d.pools]))
    if kv := network_load.rows(plan):
        console.print(table_of(f"KV over {plan.question.network.name}", network_load.KV_COLUMNS, kv))
    console.print(table_of("KV transfer", report.TRANSFER_COLUMNS, report.transfers(plan)))
    for note in report.notes(plan):
        console.print(f"- {note}", highlight=False)
    for words in profiled:
        console.print(f"- profile of {words}", highlight=False, markup=False)


def table_of(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    """Return a table whose first column is left-aligned, and the others right."""
    table = Table(title=title or None, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
