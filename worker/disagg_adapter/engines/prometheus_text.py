"""The samples of an engine's /metrics page, by name."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from disagg_adapter.engines.contract import EngineFault
from disagg_adapter.engines.http_client import EngineAnswer, EngineHttp
from disagg_wire import codes
from disagg_wire.engine_metrics.sample_table import Labels, Samples

# A hundred times the page of an engine.
_MAX_PAGE_CHARS = 4 << 20
_MAX_LINES = 10_000
_TIMEOUT_S = 5.0


async def read_samples(http: EngineHttp) -> Samples:
    """Return the samples of the page of an engine that runs.

    Raises EngineFault, also for the answers that an engine gives while it starts.
    """
    try:
        return parse_samples(await http.text("/metrics", _TIMEOUT_S))
    except EngineAnswer as answer:
        raise EngineFault(codes.INTERNAL, str(answer)) from None


def parse_samples(page: str) -> Samples:
    """Return the samples of a page in the text format of Prometheus, without buckets.

    The buckets of histograms are most of a page, and nobody here reads them. An infinite value
    counts as unknown. Raises ValueError if the page is garbled, or so long that reading it would
    hold up all streams.
    """
    out: dict[str, list[tuple[Labels, float]]] = {}
    if len(page) > _MAX_PAGE_CHARS:
        raise ValueError(f"the page is longer than {_MAX_PAGE_CHARS} characters")
    kept = [x for x in page.splitlines() if x and not x.startswith("#") and "_bucket{" not in x]
    if len(kept) > _MAX_LINES:
        raise ValueError(f"the page has more than {_MAX_LINES} samples")
    for family in text_string_to_metric_families("\n".join(kept) + "\n"):
        for sample in family.samples:
            value = float(sample.value)
            out.setdefault(sample.name, []).append((sample.labels, value if math.isfinite(value) else math.nan))
    return Samples(out)
