"""PURE: The metrics of SGLang."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from disagg_wire.engine_metrics.engine_series import EngineSeries
from disagg_wire.engine_metrics.readings import NAN, PoolReadings, Readings
from disagg_wire.engine_metrics.sample_table import Samples

_MIB = 1 << 20
_NOW, _MODE = "sglang:realtime_tokens_total", "mode"
_PROMPT_TOKENS, _ANSWER_TOKENS = "sglang:prompt_tokens_total", "sglang:generation_tokens_total"
_CACHED_TOKENS = "sglang:cached_tokens_total"
_MOVE_MS = "sglang:kv_transfer_latency_ms"
# Where requests wait beyond the queue that every engine has, each if the engine tells of it.
_QUEUES = (
    "sglang:num_prefill_bootstrap_queue_reqs",
    "sglang:num_decode_prealloc_queue_reqs",
    "sglang:num_decode_transfer_queue_reqs",
)
_FAILURES = ("sglang:num_transfer_failed_reqs_total", "sglang:num_bootstrap_failed_reqs_total")

# As the source of 0.5.23 names them. The counters that grow while requests run are preferred: the
# others grow when requests end, so that they stand still during a long one.
SERIES = EngineSeries(
    prefix="sglang:",
    prompt_lengths=("sglang:prompt_tokens_histogram",),
    computed_lengths=("sglang:uncached_prompt_tokens_histogram",),
    answer_lengths=("sglang:generation_tokens_histogram",),
    ttft=("sglang:time_to_first_token_seconds",),
    gaps=("sglang:inter_token_latency_seconds",),
    tpot=("sglang:request_time_per_output_token_seconds",),
    prompt_tokens=(_PROMPT_TOKENS,),
    cached_tokens=(_CACHED_TOKENS,),
    computed_tokens=(f'{_NOW}{{{_MODE}="prefill_compute"}}',),
    own_cached_tokens=(f'{_NOW}{{{_MODE}="prefill_cache"}}', _CACHED_TOKENS),
    generated_tokens=(f'{_NOW}{{{_MODE}="decode"}}', _ANSWER_TOKENS),
    running=("sglang:num_running_reqs",),
    waiting=("sglang:num_queue_reqs",),
    kv_usage=("sglang:token_usage",),
    ended=("sglang:num_requests_total",),
    preemptions=("sglang:num_retracted_requests_total",),
    copies=("tp_rank", "pp_rank"),
)


def readings_of(samples: Samples) -> Readings:
    """Return the readings in SGLang's metrics."""
    samples = replace(samples, copies=SERIES.copies)
    value, first = samples.value, samples.first
    return Readings(
        started=started_of(samples),
        waiting=first(SERIES.waiting) + _sum(samples, _QUEUES, 0.0),
        running=first(SERIES.running),
        kv_usage=samples.mean(*SERIES.kv_usage),
        # What an old version computed is not told: what it was asked, then.
        prompt_tokens_total=first((*SERIES.computed_tokens, _PROMPT_TOKENS)),
        generated_tokens_total=first(SERIES.generated_tokens),
        cached_tokens_total=first(SERIES.own_cached_tokens),
        preemptions_total=first(SERIES.preemptions),
        ttft_s_sum=first(SERIES.ttft, "_sum"),
        ttft_count=first(SERIES.ttft, "_count"),
        itl_s_sum=first(SERIES.gaps, "_sum"),
        itl_count=first(SERIES.gaps, "_count"),
        transfer_bytes_total=value("sglang:kv_transfer_total_mb_sum") * _MIB,
        transfer_s_total=value(f"{_MOVE_MS}_sum") / 1000,
        transfers_total=value(f"{_MOVE_MS}_count"),
        transfer_failures_total=_sum(samples, _FAILURES, NAN),
    )


def pool_readings_of(samples: Samples) -> PoolReadings:
    """Return what SGLang tells beyond that, if it is asked itself."""
    samples = replace(samples, copies=SERIES.copies)
    return PoolReadings(
        engine=readings_of(samples),
        kv_capacity_tokens=samples.value("sglang:max_total_num_tokens"),
        finished_total=samples.first(SERIES.ended),
        finished_prompt_tokens_total=samples.value(_PROMPT_TOKENS),
        finished_output_tokens_total=samples.value(_ANSWER_TOKENS),
        prompt_lengths=samples.distribution(*SERIES.prompt_lengths),
        ttft=samples.distribution(*SERIES.ttft),
        tpot=samples.distribution(*SERIES.tpot, *SERIES.gaps),
    )


def _sum(samples: Samples, names: Sequence[str], none: float) -> float:
    """Return the sum of those that there are, and `none` if there is none."""
    found = [x for x in map(samples.value, names) if x == x]
    return sum(found) if found else none


def started_of(samples: Samples) -> str:
    """Return the seconds that each phase of the start took, which no two starts share."""
    phases = samples.by_label("sglang:startup_time_seconds", "phase")
    return hashlib.sha256(repr(sorted(phases.items())).encode()).hexdigest()[:32] if phases else ""
