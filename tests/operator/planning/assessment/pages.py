"""Pages of /metrics as engines write them, whose counters a test sets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from disagg_operator.engines import BY_NAME
from disagg_wire.engine_metrics.engine_series import EngineSeries

TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
GAPS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_BOUNDS = {"ttft": SECONDS, "gaps": GAPS, "tpot": GAPS}


def metrics_of(engine: str) -> EngineSeries:
    found = BY_NAME[engine].meter
    assert found is not None
    return found.series


@dataclass
class Page:
    """The page of one engine."""

    engine: str
    model: str = "llama-3.1-70b"
    counts: dict[str, list[int]] = field(default_factory=dict)
    """The counts of each histogram."""
    sums: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def request(
        self, prompt: int, answer: int, cached: int = 0, ttft_s: float = 0.3, gaps_s: Sequence[float] = ()
    ) -> None:
        """Count a request that has ended."""
        gaps_s = gaps_s or [0.03] * (answer - 1)
        for name, found in (
            ("prompt_lengths", prompt), ("computed_lengths", prompt - cached), ("answer_lengths", answer),
            ("ttft", ttft_s), ("tpot", sum(gaps_s) / max(1, len(gaps_s))),
        ):  # fmt: skip
            self._count(name, found)
        for gap_s in gaps_s:
            self._count("gaps", gap_s)
        for name, number in (
            ("prompt_tokens", prompt),
            ("cached_tokens", cached),
            ("computed_tokens", prompt - cached),
        ):
            self.numbers[name] = self.numbers.get(name, 0) + number

    def _count(self, name: str, value: float) -> None:
        bounds = _BOUNDS.get(name, TOKENS)
        self.counts.setdefault(name, [0] * (len(bounds) + 1))[bisect_left(bounds, value)] += 1
        self.sums[name] = self.sums.get(name, 0.0) + value

    def text(self) -> str:
        """Return the page."""
        metrics, lines = metrics_of(self.engine), []
        for quantity, counts in self.counts.items():
            name, bounds, seen = getattr(metrics, quantity)[0], _BOUNDS.get(quantity, TOKENS), 0
            lines.append(f"# TYPE {name} histogram")
            for le, count in zip((*(repr(float(b)) for b in bounds), "+Inf"), counts, strict=True):
                seen += count
                lines.append(self._line(f"{name}_bucket", seen, {"le": le}))
            lines += [self._line(f"{name}_sum", self.sums[quantity]), self._line(f"{name}_count", seen)]
        for quantity, number in self.numbers.items():
            name, _, own = getattr(metrics, quantity)[0].partition("{")
            key, _, value = own.rstrip("}").partition("=")
            lines.append(self._line(name, number, {key: value.strip('"')} if own else {}))
        return "".join(f"{line}\n" for line in lines)

    def _line(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
        words = {"model_name": self.model, **self.labels, **(labels or {})}
        shown = ",".join(f'{key}="{word}"' for key, word in words.items())
        return f"{name}{{{shown}}} {float(value)!r}"
