"""Reads the series of engines from a Prometheus that scrapes them.

Lengths and latencies are increases over the whole time. Arrivals come in steps of a minute or more.
To compare a worker with itself, the last hours are read worker by worker.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from disagg_operator.planning.assessment.bounded_http import BoundedHttp
from disagg_operator.planning.assessment.bucket_counts import BucketCounts, of_cumulative
from disagg_operator.planning.assessment.engine_page import ASSESSED
from disagg_operator.planning.assessment.readings import (
    HISTOGRAMS,
    AssessError,
    Readings,
    WatchWindow,
    check,
    late_bound,
    quantities,
)
from disagg_wire.engine_metrics.engine_series import EngineSeries

_INSTANT, _RANGE = "query", "query_range"
_MOST_POINTS = 1440
_LEAST_STEP_S = 60.0
_MOST_WINDOWS = 240
# The time in which the interval of the scrapes is counted.
_PROBED_S = 600.0
# The labels that tell engines apart; pods of one job have other instances.
_INSTANCE = ("instance", "pod", "namespace")
_MATCHERS = re.compile(r'([a-zA-Z_]\w*(=|!=|=~|!~)"[^"\\{}]*"(,|$))*')

Points = dict[float, float]


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus, and the label matchers of the series of one model, such as `namespace="a"`."""

    url: str
    select: str = ""

    def __post_init__(self) -> None:
        if not _MATCHERS.fullmatch(self.select):
            raise AssessError(f'--select: {self.select!r} is not LABEL="VALUE",...')


async def engine_in(http: BoundedHttp, source: Source) -> tuple[str, list[str]] | None:
    """Return the engine whose series a Prometheus has, and the names of its models, or None.

    Raises AssessError if it is no Prometheus.
    """
    for engine, series in ASSESSED.items():
        name = _series(source, series.answer_lengths[0], "_count")
        found = await _ask(http, source, _INSTANT, {"query": f"count by (model_name) (last_over_time({name}[1h]))"})
        if found:
            return engine, sorted(str(one["metric"].get("model_name", "")) for one in found)
    return None


async def read(
    http: BoundedHttp, source: Source, engine: str, now_s: float, seconds: float, tpot_s: float,
    reach: Callable[[float], None],
) -> Readings:  # fmt: skip
    """Return what was told within the last seconds. Raises AssessError."""
    reader = _Reader(http, source, ASSESSED[engine], now_s, seconds, reach)
    await reader.choose_step()
    histograms: dict[str, BucketCounts] = {}
    for quantity in HISTOGRAMS:
        if (found := await reader.histogram(quantity)) is not None:
            histograms[quantity] = found
    check(histograms, f"within {seconds / 3600:g} h", "see --since and --select")
    gaps = histograms.get("gaps")
    late_s = math.inf if gaps is None else late_bound(gaps, tpot_s)
    arrivals = await reader.arrivals()
    windows, workers = await reader.windows(late_s)
    return Readings(
        engine, (), workers, sum(s for _, s, _ in arrivals), histograms,
        await reader.increase("prompt_tokens"), await reader.increase("cached_tokens"),
        arrivals, tuple(windows), late_s, clock=True,
    )  # fmt: skip


@dataclass
class _Reader:
    http: BoundedHttp
    source: Source
    names_of: EngineSeries
    now_s: float
    seconds: float
    reach: Callable[[float], None]
    asked: int = 0
    step_s: float = _LEAST_STEP_S
    names: dict[str, str] = field(default_factory=dict)
    """The name of each histogram that was found."""

    async def histogram(self, quantity: str) -> BucketCounts | None:
        window = f"[{self.seconds:.0f}s]"
        for name in quantities(self.names_of)[quantity]:
            series = _series(self.source, name, "_bucket")
            found = await self._query(f"sum by (le) (increase({series}{window}))")
            total = await self._query(f"sum(increase({_series(self.source, name, '_sum')}{window}))")
            buckets = {float(one["metric"]["le"]): _number(one["value"]) for one in found if "le" in one["metric"]}
            buckets = {bound: count for bound, count in buckets.items() if math.isfinite(count)}
            if buckets and total and math.isfinite(_number(total[0]["value"])):
                self.names[quantity] = name
                return of_cumulative(buckets, _number(total[0]["value"]))
        return None

    async def increase(self, quantity: str) -> float:
        """Return the increase of a counter of all workers; 0 if there is none."""
        for name in quantities(self.names_of)[quantity]:
            found = await self._query(f"sum(increase({_series(self.source, name)}[{self.seconds:.0f}s]))")
            if found and math.isfinite(_number(found[0]["value"])):
                return _number(found[0]["value"])
        return 0.0

    async def choose_step(self) -> None:
        """Choose steps that hold four samples, since an increase needs two of them."""
        name = _series(self.source, self.names_of.ttft[0], "_count")
        found = await self._query(f"max(count_over_time({name}[{_PROBED_S:.0f}s]))")
        samples = _number(found[0]["value"]) if found else math.nan
        if samples >= 1:
            self.step_s = max(_LEAST_STEP_S, math.ceil(4 * _PROBED_S / samples / 10) * 10.0)

    async def arrivals(self) -> tuple[tuple[float, float, float], ...]:
        step_s = max(self.step_s, math.ceil(self.seconds / _MOST_POINTS))
        name = _series(self.source, self.names_of.ttft[0], "_count")
        found = await self._range(f"sum(increase({name}[{step_s:.0f}s]))", self.seconds, step_s)
        points = found[0][1] if found else {}
        return tuple((t, step_s, n) for t, n in sorted(points.items()))

    async def windows(self, late_s: float) -> tuple[list[WatchWindow], int]:
        """Return the windows of single workers, and the most workers at a time."""
        m, labels = self.names_of, ", ".join((*_INSTANCE, *filter(None, (self.names_of.workers,))))
        step_s = self.step_s
        seconds = min(self.seconds, _MOST_WINDOWS * step_s)
        running = await self._range(
            f"sum by ({labels}) (avg_over_time({_series(self.source, m.running[0], more=_copies(m))}[{step_s:.0f}s]))",
            seconds, step_s,
        )  # fmt: skip
        by_time: dict[float, int] = {}
        for _, points in running:
            for t in points:
                by_time[t] = by_time.get(t, 0) + 1
        workers = max(by_time.values(), default=0)
        gaps = self.names.get("gaps")
        if gaps is None or not math.isfinite(late_s):
            return [], workers

        async def rate(series: str) -> dict[str, Points]:
            return dict(await self._range(f"sum by ({labels}) (increase({series}[{step_s:.0f}s]))", seconds, step_s))

        counts = await rate(_series(self.source, gaps, "_count"))
        sums = await rate(_series(self.source, gaps, "_sum"))
        within = await rate(_series(self.source, gaps, "_bucket", (f'le=~"{_le(late_s)}"',)))
        computed = await rate(_series(self.source, m.computed_tokens[0], more=_copies(m)))
        none: Points = {}
        windows = [
            WatchWindow(
                worker, t, step_s, 0.0, computed.get(worker, none).get(t, math.nan), count,
                sums.get(worker, none).get(t, math.nan), max(0.0, count - within.get(worker, none).get(t, math.nan)),
                points.get(t, math.nan),
            )
            for worker, points in running
            for t, count in counts.get(worker, none).items()
        ]  # fmt: skip
        return [w for w in windows if math.isfinite(w.gaps_s) and math.isfinite(w.late)], workers

    async def _query(self, query: str) -> list[Any]:
        self._count()
        return await _ask(self.http, self.source, _INSTANT, {"query": query, "time": f"{self.now_s:.3f}"})

    async def _range(self, query: str, seconds: float, step_s: float) -> list[tuple[str, Points]]:
        """Return the points of each series, by what tells it apart."""
        self._count()
        # Whole steps: the points of an hour are those of its own minutes.
        end = self.now_s - self.now_s % step_s
        form = {"query": query, "start": f"{end - seconds + step_s:.3f}", "end": f"{end:.3f}", "step": f"{step_s:.0f}"}
        found = []
        for one in await _ask(self.http, self.source, _RANGE, form):
            points = {float(t): value for t, text in one["values"] if math.isfinite(value := _number((t, text)))}
            found.append((",".join(f"{k}={v}" for k, v in sorted(one["metric"].items())), points))
        return found

    def _count(self) -> None:
        self.asked += 1
        self.reach(min(1.0, self.asked / 24))


def _copies(series: EngineSeries) -> tuple[str, ...]:
    return tuple(f'{label}=~"0?"' for label in series.copies)


def _le(bound: float) -> str:
    """Return a regular expression of the ways in which programs write a bound."""
    return "|".join(re.escape(text).replace("\\", "\\\\") for text in dict.fromkeys((f"{bound!r}", f"{bound:g}")))


def _series(source: Source, name: str, part: str = "", more: tuple[str, ...] = ()) -> str:
    base, _, own = name.partition("{")
    matchers = [own.rstrip("}"), *more, source.select.rstrip(",")]
    return f"{base}{part}{{{','.join(filter(None, matchers))}}}"


def _number(point: Any) -> float:
    try:
        return float(point[1])
    except (TypeError, ValueError, IndexError):
        return math.nan


async def _ask(http: BoundedHttp, source: Source, path: str, form: Mapping[str, str]) -> list[Any]:
    """Return the series of an answer. Raises AssessError."""
    url = f"{source.url.rstrip('/')}/api/v1/{path}"
    status, text = await http.get(url, form)
    try:
        answer = json.loads(text)
        if status != 200 or answer["status"] != "success":
            raise AssessError(f"{url}: answers {status}: {str(answer.get('error', ''))[:300]}")
        found = answer["data"]["result"]
        for one in found:
            points = one["values"] if path == _RANGE else [one["value"]]
            # Whatever counts later must be a number here; the value of a point is a text.
            numbers = [float(one["metric"].get("le", 0)), *(float(point[0]) for point in points)]
            if any(map(math.isnan, numbers)) or any(len(point) != 2 or type(point[1]) is not str for point in points):
                raise ValueError
        return list(found)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise AssessError(f"{url}: answers {status}, and not as a Prometheus does") from None
