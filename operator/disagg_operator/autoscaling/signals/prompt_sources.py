"""PURE: The prompt tokens of decode workers by their source, from the samples of one look."""

from __future__ import annotations

import math

from disagg_operator.autoscaling.signals.pool_sums import Answers
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_operator.status.effectiveness import PromptTokens
from disagg_wire import series


def prompt_tokens(workers: Answers) -> dict[str, PromptTokens]:
    """Return the counters by pod, for the pods that know what they computed and what they got."""
    found = {pod: _of(sample) for pod, sample in workers.items() if sample is not None}
    return {pod: tokens for pod, tokens in found.items() if tokens is not None}


def _of(sample: Sample) -> PromptTokens | None:
    computed, cached, transferred = (
        sample.get(f"{series.WORKER_PROMPT_TOKENS_BY_SOURCE}:{source}")
        for source in (series.LOCAL_COMPUTE, series.LOCAL_CACHE_HIT, series.EXTERNAL_KV_TRANSFER)
    )
    if math.isnan(computed) or math.isnan(transferred):
        return None
    # An engine may not know its cache hits: then they count on neither side.
    return PromptTokens(computed, transferred + (0.0 if math.isnan(cached) else cached))
