"""The plots of a deployment over time (load, queues, workers, objectives) and those of a plan.

They need matplotlib (extra `simulate`).
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg_operator.performance.hardware import NETWORKS
from disagg_operator.planning.deployment_plan import Deployment, Plan
from disagg_operator.planning.report import rounded

_WINDOW_S = 300.0
_PAGES = {".html", ".htm"}
_BLUE, _ORANGE, _GREY, _RED, _GREEN = "#1f6feb", "#d9730d", "#8c959f", "#cf222e", "#1a7f37"


@dataclass(frozen=True, slots=True)
class Timeline:
    """The state of a deployment over time."""

    title: str
    columns: Mapping[str, Sequence[float]]
    """The columns by name, all of equal length.

    They must be t_s, arrivals, prompt_tokens, generated_tokens, waiting_requests, decode_waiting,
    ttft_total, ttft_ok, tpot_total, tpot_ok, and {prefill,decode}_{desired,ready}. Times are in
    seconds; counts are those of the interval that ends at that time.
    """


def draw(timeline: Timeline) -> Any:
    """Return a matplotlib figure with four panels."""
    import numpy as np
    from matplotlib.figure import Figure

    c = {name: np.asarray(values, dtype=float) for name, values in timeline.columns.items()}
    t, unit = (c["t_s"] / 3600, "h") if len(c["t_s"]) and c["t_s"][-1] > 7200 else (c["t_s"] / 60, "min")
    step_s = np.diff(c["t_s"], prepend=0.0).clip(1e-9)
    figure = Figure(figsize=(11, 9), layout="constrained")
    load, queue, workers, slo = figure.subplots(4, 1, sharex=True)
    figure.suptitle(timeline.title)
    _lines(
        load,
        t,
        {
            "prompt tokens/s": (c["prompt_tokens"] / step_s, _BLUE),
            "output tokens/s": (c["generated_tokens"] / step_s, _ORANGE),
        },
    )
    load.set_ylabel("tokens/s")
    _lines(
        queue,
        t,
        {"waiting for prefill": (c["waiting_requests"], _BLUE), "waiting for decode": (c["decode_waiting"], _ORANGE)},
    )
    queue.set_ylabel("requests")
    for pool, colour in (("prefill", _BLUE), ("decode", _ORANGE)):
        workers.step(t, c[f"{pool}_ready"], where="post", color=colour, label=f"{pool} ready")
        workers.step(
            t, c[f"{pool}_desired"], where="post", color=colour, alpha=0.4, linestyle=":", label=f"{pool} desired"
        )
    workers.set_ylim(bottom=0)
    workers.set_ylabel("workers")
    for name, colour in (("ttft", _BLUE), ("tpot", _ORANGE)):
        at, share = windows(c["t_s"], c[f"{name}_ok"], c[f"{name}_total"])
        slo.step(
            at / (3600 if unit == "h" else 60),
            100 * share,
            where="post",
            color=colour,
            label=f"{name.upper()} within its objective",
        )
    slo.axhline(99, color=_GREY, linewidth=0.8)
    slo.set_ylabel("% in 5 minutes")
    slo.set_xlabel(f"time, {unit}")
    slo.set_ylim(top=100.5)
    for axis in (load, queue, workers, slo):
        axis.grid(alpha=0.25)
        # The legend is above the lines.
        axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=8, frameon=False, ncols=4, borderaxespad=0.1)
        axis.margins(x=0.005)
    return figure


def windows(t_s: Any, ok: Any, total: Any) -> tuple[Any, Any]:
    """Return the start in seconds and the share of each window of five minutes with any count."""
    import numpy as np

    window = (t_s // _WINDOW_S).astype(int)
    ok, total = np.nan_to_num(ok), np.nan_to_num(total)
    good, all_ = np.bincount(window, weights=ok), np.bincount(window, weights=total)
    seen = np.flatnonzero(all_ > 0)
    return seen * _WINDOW_S, good[seen] / all_[seen]


def _lines(axis: Any, t: Any, lines: Mapping[str, tuple[Any, str]]) -> None:
    for label, (values, colour) in lines.items():
        axis.plot(t, values, color=colour, linewidth=0.8, label=label)
    axis.set_ylim(bottom=0)


def check(path: Path, timelines: int) -> None:
    """Raise ValueError if this number of timelines can't be written to `path`.

    It is called before the timelines are computed.
    """
    kind = path.suffix.lower()
    if kind not in {*_PAGES, ".png", ".svg", ".pdf"}:
        raise ValueError(f"--plot: {path}: the name must end in .png, .svg, .pdf or .html")
    if kind not in _PAGES and timelines != 1:
        raise ValueError(f"--plot: {path} can hold one timeline, not {timelines}: write .html instead")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot: {path}: there is no folder {path.parent}")


def save(path: Path, timelines: Sequence[Timeline], text: str = "") -> None:
    """Write one timeline as PNG, SVG or PDF, or all of them as HTML.

    An HTML page has `text` above the pictures and needs no other file.
    """
    check(path, len(timelines))
    if path.suffix.lower() not in _PAGES:
        draw(timelines[0]).savefig(path, dpi=110)
        return
    pictures = []
    for timeline in timelines:
        buffer = io.BytesIO()
        draw(timeline).savefig(buffer, format="png", dpi=110)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        pictures.append(f'<img alt="{html.escape(timeline.title)}" src="data:image/png;base64,{encoded}">')
    style = (
        "body{font:15px system-ui;margin:2em auto;max-width:1150px}img{width:100%}"
        "pre{overflow-x:auto;background:#f6f8fa;padding:1em}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>disagg</title><style>{style}</style>'
    path.write_text(f"{head}<pre>{html.escape(text)}</pre>{''.join(pictures)}</html>\n", encoding="utf-8")


# ---- a plan ----


def plan_pictures(plan: Plan) -> list[str]:
    """Return the plots of a plan as SVG elements for an HTML page.

    They are the cost by rate, the prefill time by prompt length, the step time by batch size, and
    the transfer time by network. Infeasible deployments have fewer plots.
    """
    pictures = [_cost(plan)] if any(math.isfinite(min(row[1:])) for row in plan.rates) else []
    d = plan.disaggregated
    if isinstance(d, Deployment):
        pictures += [_prefill(plan, d), _step(plan, d), _transfer(plan)]
    return [_svg(picture, i) for i, picture in enumerate(pictures)]


def _svg(figure: Any, number: int) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # The ids of elements differ between the pictures of a page, but not between runs.
    with mpl.rc_context({"svg.hashsalt": f"plan-{number}"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _cost(plan: Plan) -> Any:
    unit = "cost an hour" if plan.question.prices_per_hour else "GPUs"
    figure, axis = _axes("Cost over load", "requests/s", unit)
    rates = [r for r, _, _ in plan.rates]
    for i, (label, colour) in enumerate((("disaggregated", _BLUE), ("monolithic", _ORANGE)), 1):
        costs = [row[i] if math.isfinite(row[i]) else math.nan for row in plan.rates]
        axis.step(rates, costs, where="post", color=colour, label=label, linewidth=1.6)
    axis.set_xscale("log")
    axis.set_yscale("log")
    at = plan.question.traffic.requests_per_s
    axis.axvline(at, color=_GREY, linewidth=1, linestyle="--", label=f"planned: {at:.4g}/s")
    if plan.crossover_per_s is not None and plan.crossover_per_s > rates[0]:
        axis.axvline(
            plan.crossover_per_s,
            color=_GREEN,
            linewidth=1,
            linestyle=":",
            label=f"crossover: {rounded(plan.crossover_per_s)}/s",
        )
    axis.legend(fontsize=8, frameon=False)
    return figure


def _prefill(plan: Plan, d: Deployment) -> Any:
    pool = d.pools[0]
    figure, axis = _axes(f"Prefill of one prompt, {pool.tensor} x {pool.gpu.name}", "prompt tokens", "s")
    tail = plan.question.traffic.prompt.tail
    lengths = [1.5 * tail * i / 100 for i in range(1, 101)]
    axis.plot(lengths, [pool.profile.isolated_s(n) for n in lengths], color=_BLUE, linewidth=1.6, label="alone")
    axis.axhline(plan.question.objectives.ttft_s, color=_RED, linewidth=1, linestyle="--", label="TTFT objective")
    axis.axvline(tail, color=_GREY, linewidth=1, linestyle=":", label=f"tail prompt: {tail:.0f}")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _step(plan: Plan, d: Deployment) -> Any:
    pool = d.pools[1]
    figure, axis = _axes(f"Decode step, {pool.tensor} x {pool.gpu.name}", "sequences", "ms")
    held = plan.question.traffic.held_tokens
    most = max(8, round(1.3 * pool.batch))
    batches = list(range(1, most + 1))
    axis.plot(
        batches, [1e3 * pool.profile.step_s(n, n * held) for n in batches], color=_ORANGE, linewidth=1.6, label="step"
    )
    axis.axhline(1e3 * plan.question.objectives.tpot_s, color=_RED, linewidth=1, linestyle="--", label="TPOT objective")
    axis.axvline(pool.batch, color=_GREY, linewidth=1, linestyle=":", label=f"planned batch: {pool.batch}")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _transfer(plan: Plan) -> Any:
    figure, axis = _axes("KV transfer, not overlapped", "ms", "")
    q = plan.question
    names = list(NETWORKS)[::-1]
    for offset, (label, tokens, colour) in enumerate(
        (("tail prompt", q.traffic.prompt.tail, _ORANGE), ("mean prompt", q.traffic.prompt.mean, _BLUE))
    ):
        values = [1e3 * NETWORKS[n].transfer_s(q.kv.bytes_of(tokens)) for n in names]
        bars = axis.barh(
            [i + 0.2 - 0.4 * (1 - offset) for i in range(len(names))], values, 0.36, color=colour, label=label
        )
        axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
    axis.set_yticks(range(len(names)), names)
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.legend(fontsize=8, frameon=False)
    return figure
