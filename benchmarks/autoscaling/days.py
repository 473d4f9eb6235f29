"""Traces for cross-validation: the days before a trace, rebuilt from the minutes of its history.

Each minute gets as many requests as it had. The gaps are drawn from a gamma distribution with the
trace's own variation. The lengths are those of whole requests from the minute of the trace that was
most similar, scaled to the sums of the minute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from disagg_operator.autoscaling.policy.history import Minute
from disagg_operator.simulation.traces import Trace

_MINUTE_S = 60.0
_DAY_S = 86_400.0
_GAPS = 500  # this many gaps count as having one rate


@dataclass(frozen=True)
class _Minutes:
    """The minutes of a trace that have requests.

    Minute i has the requests [first[i], last[i]); `means` holds the logarithms of their mean
    lengths.
    """

    first: Any
    last: Any
    means: Any


def day(trace: Trace, past: list[Minute], back: int, seed: int = 0) -> tuple[Trace, list[Minute]]:
    """Return the day that began `back` days before the trace, and the history before that day.

    Both are on the clock of that day.
    """
    random = np.random.default_rng(seed + back)
    minutes = [replace(m, at_s=m.at_s + back * _DAY_S) for m in past]
    own, variation = _own(trace), gap_variation(trace)
    arrival, prompt, output = [], [], []
    for m in minutes:
        n = round(m.requests)
        if not (0 < m.at_s <= _DAY_S and n):
            continue
        alike = _alike(own, m)
        picked = random.integers(own.first[alike], own.last[alike], n)
        gaps = random.gamma(1 / variation**2, size=n + 1).cumsum()
        arrival.append(m.at_s - _MINUTE_S + _MINUTE_S * gaps[:-1] / gaps[-1])
        prompt.append(_scaled(trace.prompt_tokens[picked], m.prompt_tokens))
        output.append(_scaled(trace.output_tokens[picked], m.output_tokens))
    lengths = [np.concatenate(x).astype(trace.prompt_tokens.dtype) for x in (prompt, output)]
    rebuilt = Trace(f"{trace.name} -{back}", np.concatenate(arrival), lengths[0], np.zeros_like(lengths[0]), lengths[1])
    return rebuilt, [m for m in minutes if m.at_s <= 0]


def gap_variation(trace: Trace) -> float:
    """Return the coefficient of variation of the gaps between requests at a constant rate.

    The daily shape of the rate has no part in it.
    """
    gaps = np.diff(trace.arrival_s)
    rows = gaps[: len(gaps) // _GAPS * _GAPS].reshape(-1, _GAPS) if len(gaps) >= _GAPS else gaps[None, :]
    return float((rows / rows.mean(1, keepdims=True)).std())


def _own(trace: Trace) -> _Minutes:
    edges = np.searchsorted(trace.arrival_s, np.arange(0.0, trace.span_s + _MINUTE_S, _MINUTE_S))
    first, last = edges[:-1][np.diff(edges) > 0], edges[1:][np.diff(edges) > 0]
    sums = [
        np.add.reduceat(x.astype(float), first)
        for x in (trace.prompt_tokens[: last[-1]], trace.output_tokens[: last[-1]])
    ]
    return _Minutes(first, last, np.log(np.array(sums) / (last - first)))


def _alike(own: _Minutes, m: Minute) -> int:
    wanted = np.log([[m.prompt_tokens / m.requests], [m.output_tokens / m.requests]])
    return int(((own.means - wanted) ** 2).sum(0).argmin())


def _scaled(tokens: Any, total: float) -> Any:
    return np.maximum((tokens * (total / max(float(tokens.sum()), 1.0))).round(), 1)
