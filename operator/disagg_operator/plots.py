"""What happened to a deployment, as a picture: load, queues, workers and objectives over time. Needs matplotlib (extra `simulate`)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WINDOW_S = 300.0
_BLUE, _ORANGE, _GREY = "#1f6feb", "#d9730d", "#8c959f"


@dataclass(frozen=True, slots=True)
class Timeline:
    """Columns of equal length. Times in s; counts are of the interval that ends then.

    Needed: t_s, arrivals, prompt_tokens, generated_tokens, waiting_requests, decode_waiting, ttft_total, ttft_ok, tpot_total, tpot_ok, and
    {prefill,decode}_{desired,ready}.
    """

    title: str
    columns: Mapping[str, Sequence[float]]


def draw(timeline: Timeline) -> Any:
    """A matplotlib figure of four panels."""
    import numpy as np
    from matplotlib.figure import Figure

    c = {name: np.asarray(values, dtype=float) for name, values in timeline.columns.items()}
    t, unit = (c["t_s"] / 3600, "h") if len(c["t_s"]) and c["t_s"][-1] > 7200 else (c["t_s"] / 60, "min")
    step_s = np.diff(c["t_s"], prepend=0.0).clip(1e-9)
    figure = Figure(figsize=(11, 9), layout="constrained")
    load, queue, workers, slo = figure.subplots(4, 1, sharex=True)
    figure.suptitle(timeline.title)
    _lines(load, t, {"prompt tokens/s": (c["prompt_tokens"] / step_s, _BLUE), "output tokens/s": (c["generated_tokens"] / step_s, _ORANGE)})
    load.set_ylabel("tokens/s")
    _lines(queue, t, {"waiting for prefill": (c["waiting_requests"], _BLUE), "waiting for decode": (c["decode_waiting"], _ORANGE)})
    queue.set_ylabel("requests")
    for pool, colour in (("prefill", _BLUE), ("decode", _ORANGE)):
        workers.step(t, c[f"{pool}_ready"], where="post", color=colour, label=f"{pool} ready")
        workers.step(t, c[f"{pool}_desired"], where="post", color=colour, alpha=0.4, linestyle=":", label=f"{pool} desired")
    workers.set_ylim(bottom=0)
    workers.set_ylabel("workers")
    for name, colour in (("ttft", _BLUE), ("tpot", _ORANGE)):
        at, share = windows(c["t_s"], c[f"{name}_ok"], c[f"{name}_total"])
        slo.step(at / (3600 if unit == "h" else 60), 100 * share, where="post", color=colour, label=f"{name.upper()} within its objective")
    slo.axhline(99, color=_GREY, linewidth=0.8)
    slo.set_ylabel("% in 5 minutes")
    slo.set_xlabel(f"time, {unit}")
    for axis in (load, queue, workers, slo):
        axis.grid(alpha=0.25)
        axis.legend(loc="upper left", fontsize=8, frameon=False, ncols=4)
        axis.margins(x=0.005)
    return figure


def windows(t_s: Any, ok: Any, total: Any) -> tuple[Any, Any]:
    """Begin and share of each five minutes in which something was counted."""
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


def save(path: Path, timelines: Sequence[Timeline], text: str = "") -> None:
    """PNG (one timeline), SVG, PDF, or HTML with all of them and `text` above, which needs nothing else to be shown."""
    if path.suffix.lower() not in {".html", ".htm"}:
        if len(timelines) != 1:
            raise ValueError(f"plot: {path} can hold one timeline, not {len(timelines)}: write .html instead")
        draw(timelines[0]).savefig(path, dpi=110)
        return
    pictures = []
    for timeline in timelines:
        buffer = io.BytesIO()
        draw(timeline).savefig(buffer, format="png", dpi=110)
        pictures.append(
            f'<img alt="{html.escape(timeline.title)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        )
    style = "body{font:15px system-ui;margin:2em auto;max-width:1150px}img{width:100%}pre{overflow-x:auto;background:#f6f8fa;padding:1em}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>disagg</title><style>{style}</style>'
    path.write_text(f"{head}<pre>{html.escape(text)}</pre>{''.join(pictures)}</html>\n", encoding="utf-8")
