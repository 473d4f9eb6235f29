"""Parses a page of /metrics into the sample of one pod, with the parser of prometheus_client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from disagg_operator.autoscaling.signals.samples import WANTED, Sample, add, flat


def parse(text: str, at_s: float) -> Sample | None:
    """Parse a page of /metrics. None if it cannot be read or holds none of our metrics."""
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in WANTED]
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                add(values, flat(sample.name, sample.labels), float(sample.value))
    except (ValueError, KeyError, IndexError):
        return None
    return Sample(at_s, values) if values else None
