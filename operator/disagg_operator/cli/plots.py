"""The picture of a deployment over time: load, queues, workers and objectives.

It needs matplotlib (extra `simulate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WINDOW_S = 300.0
PAGES = frozenset({".html", ".htm"})
"""The endings of pages, which hold any number of timelines (cli.timeline_html)."""
_BLUE, _ORANGE, _GREY = "#1f6feb", "#d9730d", "#8c959f"


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
    if kind not in {*PAGES, ".png", ".svg", ".pdf"}:
        raise ValueError(f"--plot: {path}: the name must end in .png, .svg, .pdf or .html")
    if kind not in PAGES and timelines != 1:
        raise ValueError(f"--plot: {path} can hold one timeline, not {timelines}: write .html instead")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot: {path}: there is no folder {path.parent}")


def save(path: Path, timeline: Timeline) -> None:
    """Write one timeline as PNG, SVG or PDF."""
    check(path, 1)
    draw(timeline).savefig(path, dpi=110)
