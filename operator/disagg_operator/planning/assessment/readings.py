"""PURE: What engines told while they were watched, and how it is put together from their pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from disagg_operator.planning.assessment.bucket_counts import BucketCounts
from disagg_wire.engine_metrics.engine_series import EngineSeries

HISTOGRAMS = ("prompt_lengths", "computed_lengths", "answer_lengths", "ttft", "gaps", "tpot")
NUMBERS = ("prompt_tokens", "cached_tokens", "computed_tokens", "running")
# Without these there is no workload.
NEEDED = ("prompt_lengths", "answer_lengths", "ttft")


class AssessError(Exception):
    """Raised when what runs cannot be read; the message says why, and what to do."""


def quantities(series: EngineSeries) -> dict[str, tuple[str, ...]]:
    """Return the names of the series of each quantity."""
    return {f.name: getattr(series, f.name) for f in fields(series) if f.name in (*HISTOGRAMS, *NUMBERS)}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The series of one worker at one moment, by quantity."""

    at_s: float
    numbers: Mapping[str, float]
    histograms: Mapping[str, BucketCounts]
    model: str = ""


@dataclass(frozen=True, slots=True)
class WatchWindow:
    """The work of one worker between two looks at it."""

    worker: str
    at_s: float
    """The end of the window."""
    seconds: float
    requests: float
    """The number of first tokens."""
    computed_tokens: float
    """The prompt tokens that were computed; NaN: not known."""
    gaps: float
    """The number of tokens that followed another one."""
    gaps_s: float
    """The sum of the seconds between them."""
    late: float
    """The number of gaps that were longer than `Readings.late_s`."""
    running: float
    """The mean number of requests that ran."""


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything that was read."""

    engine: str
    models: tuple[str, ...]
    workers: int
    span_s: float
    histograms: Mapping[str, BucketCounts]
    """The histograms of all workers together, of the watched time only."""
    prompt_tokens: float
    cached_tokens: float
    arrivals: tuple[tuple[float, float, float], ...]
    """The requests of all workers over time: the end of each part, its seconds, and requests."""
    windows: tuple[WatchWindow, ...]
    late_s: float
    """The bound of a bucket from which a gap counts as late; infinite: there are no gaps."""
    clock: bool = False
    """Whether times are seconds since 1970."""


def check(histograms: Mapping[str, BucketCounts], when: str, advice: str) -> None:
    """Raise AssessError if what was read is no workload."""
    ended = histograms.get("answer_lengths")
    if ended is None or ended.count < 1:
        raise AssessError(f"no request ended {when}: {advice}")
    for name in NEEDED:
        if name not in histograms or histograms[name].count <= 0:
            raise AssessError(f"the engine's metrics have no {name.replace('_', ' ')}: it may be too old")


def late_bound(gaps: BucketCounts, tpot_s: float) -> float:
    """Return the least bound of a bucket that is not below an objective."""
    return next(bound for bound in gaps.bounds if bound >= tpot_s * (1 - 1e-9))


@dataclass
class Watch:
    """Puts the snapshots of workers together. The time is that of the snapshots."""

    engine: str
    tpot_s: float
    workers: dict[str, Snapshot] = field(default_factory=dict)
    """The last snapshot of each worker."""
    models: set[str] = field(default_factory=set)
    began_s: float = math.inf
    ended_s: float = -math.inf
    histograms: dict[str, BucketCounts] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    windows: list[WatchWindow] = field(default_factory=list)

    def take(self, worker: str, snapshot: Snapshot) -> None:
        """Add a snapshot. After a restart of the worker, counting begins with it."""
        earlier = self.workers.get(worker)
        self.workers[worker] = snapshot
        self.models.add(snapshot.model)
        self.began_s, self.ended_s = min(self.began_s, snapshot.at_s), max(self.ended_s, snapshot.at_s)
        if earlier is None:
            return
        histograms: dict[str, BucketCounts] = {}
        for name, now in snapshot.histograms.items():
            before = earlier.histograms.get(name)  # a series with labels begins with its first value
            since = now if before is None else now.minus(before)
            if since is None:
                return
            histograms[name] = since
        numbers = {name: _since(snapshot, earlier, name) for name in NUMBERS if name != "running"}
        for name, new in histograms.items():
            self.histograms[name] = self.histograms[name].plus(new) if name in self.histograms else new
        for name, number in numbers.items():
            self.numbers[name] = self.numbers.get(name, 0.0) + (0.0 if math.isnan(number) else number)
        self.windows.append(self._window(worker, earlier, snapshot, histograms, numbers))

    def _window(
        self,
        worker: str,
        earlier: Snapshot,
        now: Snapshot,
        histograms: Mapping[str, BucketCounts],
        numbers: Mapping[str, float],
    ) -> WatchWindow:
        computed, gaps, ttft = numbers["computed_tokens"], histograms.get("gaps"), histograms.get("ttft")
        if math.isnan(computed):
            cached = numbers["cached_tokens"]
            computed = numbers["prompt_tokens"] - (0.0 if math.isnan(cached) else cached)
        late = 0.0
        if gaps is not None:
            late = gaps.count * (1 - gaps.share_within(late_bound(gaps, self.tpot_s)).low) if gaps.count else 0.0
        running = [s.numbers.get("running", math.nan) for s in (earlier, now)]
        return WatchWindow(
            worker, now.at_s, now.at_s - earlier.at_s, ttft.count if ttft is not None else 0.0, computed,
            gaps.count if gaps is not None else 0.0, gaps.total if gaps is not None else 0.0, late, sum(running) / 2,
        )  # fmt: skip

    def readings(self) -> Readings:
        """Return what has been read. Raises AssessError if no request ended meanwhile."""
        span_s = max(0.0, self.ended_s - self.began_s)
        check(self.histograms, f"within {span_s:.0f} s", "watch for longer (--for)")
        parts: dict[float, tuple[float, float]] = {}
        for w in self.windows:
            seconds_, requests = parts.get(w.at_s, (0.0, 0.0))
            parts[w.at_s] = max(seconds_, w.seconds), requests + w.requests
        gaps = self.histograms.get("gaps")
        return Readings(
            self.engine,
            tuple(sorted(self.models - {""})),
            len(self.workers),
            span_s,
            self.histograms,
            self.numbers.get("prompt_tokens", 0.0),
            self.numbers.get("cached_tokens", 0.0),
            tuple((at_s, *parts[at_s]) for at_s in sorted(parts)),
            tuple(self.windows),
            math.inf if gaps is None else late_bound(gaps, self.tpot_s),
        )


def _since(now: Snapshot, earlier: Snapshot, name: str) -> float:
    """Return what a counter has counted, or NaN. One with labels begins with its first value."""
    difference = now.numbers.get(name, math.nan) - earlier.numbers.get(name, 0.0)
    return difference if difference >= 0 else math.nan
