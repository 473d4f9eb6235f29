"""PURE: The readings of an engine of another project, from its own metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg_wire.engine_metrics.sample_table import Distribution

NAN = math.nan
_UNTOLD = Distribution()


@dataclass(frozen=True, slots=True)
class Readings:
    """The engine's own metrics at one time. NaN stands for what the engine does not tell.

    Fields that end in `_total`, `_sum` or `_count` count since the engine's start.
    """

    started: str = ""
    """The same text as `Identity.started`; another one after a restart."""
    waiting: float = NAN
    """Requests that wait in the engine."""
    running: float = NAN
    """Requests that the engine computes."""
    kv_usage: float = NAN
    """The share of the KV cache that is in use, from 0 to 1."""
    prompt_tokens_total: float = NAN
    """Prompt tokens that the engine computed."""
    generated_tokens_total: float = NAN
    """Tokens that it generated."""
    cached_tokens_total: float = NAN
    """Prompt tokens that it found in its prefix cache."""
    preemptions_total: float = NAN
    """Sequences that lost their blocks."""
    steps_total: float = NAN
    """Steps of the engine."""
    ttft_s_sum: float = NAN
    ttft_count: float = NAN
    itl_s_sum: float = NAN
    itl_count: float = NAN
    transfer_bytes_total: float = NAN
    """Bytes of KV that this engine moved."""
    transfer_s_total: float = NAN
    """Seconds that it took."""
    transfers_total: float = NAN
    """Transfers that succeeded."""
    transfer_failures_total: float = NAN
    """Transfers that failed."""
    expired_total: float = NAN
    """Hand-overs that nobody read before the end of their lease."""
    late_reads_total: float = NAN
    """Hand-overs that were read after the end of their lease: wrong text may have come of them."""
    prompt_tokens_by_source: Mapping[str, float] = field(default_factory=dict)
    """Prompt tokens by where their KV came from (disagg_wire.series)."""


@dataclass(frozen=True, slots=True)
class PoolReadings:
    """All that is needed to scale an engine where no router of ours counts."""

    engine: Readings
    kv_capacity_tokens: float = NAN
    """Tokens for which the KV cache has room."""
    finished_total: float = NAN
    """Requests that ended, however they did."""
    finished_prompt_tokens_total: float = NAN
    """Prompt tokens of these requests, cached or not."""
    finished_output_tokens_total: float = NAN
    """Tokens that were generated for these requests."""
    prefill_s_total: float = NAN
    """Seconds in which these requests were prefilled, added up: two at once count twice."""
    prompt_lengths: Distribution = _UNTOLD
    """The prompt tokens of each request."""
    ttft: Distribution = _UNTOLD
    """The seconds to the first token of each request, of which the engine knows its own part."""
    tpot: Distribution = _UNTOLD
    """The seconds per further output token, of each request or of each token."""
