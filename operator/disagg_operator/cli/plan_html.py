"""The HTML report of a plan, with tables and charts, in one file without external resources."""

from __future__ import annotations

import html
import math
from pathlib import Path

from disagg_operator.cli import html_page
from disagg_operator.cli.html_page import Axis, Chart, Guide, Made, Series
from disagg_operator.performance.hardware import NETWORKS
from disagg_operator.planning import network_load, report
from disagg_operator.planning.deployment_plan import Deployment, Plan

_POINTS = 100


def write(path: Path, plan: Plan, made: Made) -> None:
    """Write the report of a plan to a file."""
    path.write_text(render(plan, made), encoding="utf-8")


def render(plan: Plan, made: Made) -> str:
    """Return the report of a plan as an HTML document."""
    q = plan.question
    parts = [
        f'<p class="{"verdict" if plan.chosen else "verdict bad"}">{html.escape(report.headline(plan))}</p>',
        html_page.definitions(report.question_rows(plan)),
        "<h2>In two pools, or in one</h2>",
        html_page.table(
            report.DEPLOYMENT_COLUMNS, [report.deployment_row(plan, name, d) for name, d in report.both(plan)]
        ),
    ]
    for name, d in report.both(plan):
        if isinstance(d, Deployment):
            rows = [report.pool_row(p, d.chunk_tokens) for p in d.pools]
            parts += [f"<h2>{name.capitalize()}</h2>", html_page.table(report.POOL_COLUMNS, rows)]
    if kv := network_load.rows(plan):
        parts += [f"<h2>KV over {q.network.name}</h2>", html_page.table(network_load.KV_COLUMNS, kv)]
    parts += ["<h2>KV transfer</h2>", html_page.table(report.TRANSFER_COLUMNS, report.transfers(plan))]
    notes = "<h2>Notes</h2>" + html_page.bullets(report.notes(plan))
    title = f"{q.model.name} at {q.traffic.requests_per_s:.4g} requests/s"
    return html_page.page(title, "".join(parts), charts(plan), notes, made)


def charts(plan: Plan) -> list[Chart]:
    """Return the charts of a plan.

    They are the cost by rate, the prefill time by prompt length, the step time by batch size, and
    the transfer time by prompt length. Infeasible deployments have fewer.
    """
    found = [_cost(plan)] if any(math.isfinite(min(row[1:])) for row in plan.rates) else []
    d = plan.disaggregated
    return [*found, _prefill(plan, d), _step(plan, d), _transfer(plan)] if isinstance(d, Deployment) else found


def _cost(plan: Plan) -> Chart:
    unit = "cost an hour" if plan.question.prices_per_hour else "GPUs"
    at = plan.question.traffic.requests_per_s
    lines = [Guide("x", at, f"planned: {at:.4g}/s")]
    if plan.crossover_per_s is not None and plan.crossover_per_s > plan.rates[0][0]:
        lines.append(Guide("x", plan.crossover_per_s, f"crossover: {report.rounded(plan.crossover_per_s)}/s"))
    series = [
        Series(label, [row[i] for row in plan.rates], colour, stepped=1)
        for i, (label, colour) in enumerate((("disaggregated", html_page.BLUE), ("monolithic", html_page.ORANGE)), 1)
    ]
    simulated = {row[0]: row for row in plan.simulated_rates}
    if simulated:
        for i, (label, colour) in enumerate((("disaggregated", html_page.TEAL), ("monolithic", html_page.RED)), 1):
            values = [simulated[row[0]][i] if row[0] in simulated else math.nan for row in plan.rates]
            series.append(Series(f"{label}, simulated", values, colour, stepped=1))
    return Chart("Cost over load", Axis("requests/s", log=True), Axis(unit, log=True), [r for r, _, _ in plan.rates],
                 series, lines)  # fmt: skip


def _prefill(plan: Plan, d: Deployment) -> Chart:
    pool, tail = d.pools[0], plan.question.traffic.prompt.tail
    lengths = _to(1.5 * tail)
    goal = plan.question.objectives.ttft_s
    return Chart(
        f"Prefill of one prompt, {pool.tensor} x {pool.gpu.name}", Axis("prompt tokens"), Axis("s"), lengths,
        [Series("alone", [pool.profile.isolated_s(n) for n in lengths], html_page.BLUE)],
        [Guide("y", goal, "TTFT objective"), Guide("x", tail, f"tail prompt: {tail:.0f}")],
    )  # fmt: skip


def _step(plan: Plan, d: Deployment) -> Chart:
    pool, held = d.pools[1], plan.question.traffic.held_tokens
    batches = list(range(1, max(8, round(1.3 * pool.batch)) + 1))
    return Chart(
        f"Decode step, {pool.tensor} x {pool.gpu.name}", Axis("sequences"), Axis("ms"), batches,
        [Series("step", [1e3 * pool.profile.step_s(n, n * held) for n in batches], html_page.ORANGE)],
        [
            Guide("y", 1e3 * plan.question.objectives.tpot_s, "TPOT objective"),
            Guide("x", pool.batch, f"planned batch: {pool.batch}"),
        ],
    )  # fmt: skip


def _transfer(plan: Plan) -> Chart:
    q = plan.question
    lengths = _to(1.5 * q.traffic.prompt.tail)
    series = [
        Series(name, [1e3 * network.transfer_s(q.kv.bytes_of(n)) for n in lengths], colour, name != q.network.name)
        for (name, network), colour in zip(NETWORKS.items(), html_page.COLOURS, strict=False)
    ]
    tail = q.traffic.prompt.tail
    lines = [Guide("x", tail, f"tail prompt: {tail:.0f}")]
    return Chart("KV transfer, not overlapped", Axis("prompt tokens"), Axis("ms", log=True), lengths, series, lines)


def _to(most: float) -> list[float]:
    return [most * i / _POINTS for i in range(1, _POINTS + 1)]
