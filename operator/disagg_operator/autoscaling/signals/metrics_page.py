"""Parses a page of /metrics into the sample of one pod, with the parser of prometheus_client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from disagg_operator.autoscaling.signals.samples import WANTED, Sample, add, flat

# A router with all its series has some hundred lines; those of other programs in it are skipped.
_MOST_LINES, _MOST_SAMPLES = 50_000, 2_000


def parse(text: str, at_s: float) -> Sample | None:
    """Parse a page of /metrics. None if it cannot be read or holds none of our metrics.

    A page that is far larger than any of ours is not read either: it would hold up everybody.
    """
    if text.count("\n") > _MOST_LINES:
        return None
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in WANTED]
    if len(lines) > _MOST_SAMPLES:
        return None
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                add(values, flat(sample.name, sample.labels), float(sample.value))
    except (ValueError, KeyError, IndexError):
        return None
    return Sample(at_s, values) if values else None
