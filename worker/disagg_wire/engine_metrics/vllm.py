"""PURE: The metrics of vLLM."""

from __future__ import annotations

import math

from disagg_wire.engine_metrics.engine_series import EngineSeries
from disagg_wire.engine_metrics.readings import PoolReadings, Readings
from disagg_wire.engine_metrics.sample_table import Samples
from disagg_wire.series import LOCAL_COMPUTE

_BY_SOURCE, _SOURCE = "vllm:prompt_tokens_by_source_total", "source"
_HITS = "vllm:prefix_cache_hits_total"
_MOVE_S = "vllm:nixl_xfer_time_seconds"
CACHE = "vllm:cache_config_info"
"""The series whose labels are the settings of the KV cache."""

# As 0.31 and 0.32 export them; the alternatives are those of earlier versions.
SERIES = EngineSeries(
    prefix="vllm:",
    prompt_lengths=("vllm:request_prompt_tokens",),
    computed_lengths=("vllm:request_prefill_kv_computed_tokens",),
    answer_lengths=("vllm:request_generation_tokens",),
    ttft=("vllm:time_to_first_token_seconds",),
    gaps=("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    tpot=("vllm:request_time_per_output_token_seconds",),
    prompt_tokens=("vllm:prompt_tokens_total",),
    cached_tokens=("vllm:prompt_tokens_cached_total", _HITS),
    # request_prefill_kv_computed_tokens counts what came from another engine, too.
    computed_tokens=(f'{_BY_SOURCE}{{{_SOURCE}="{LOCAL_COMPUTE}"}}',),
    own_cached_tokens=(_HITS,),
    generated_tokens=("vllm:generation_tokens_total",),
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    kv_usage=("vllm:kv_cache_usage_perc",),
    ended=("vllm:request_success_total",),
    preemptions=("vllm:num_preemptions_total",),
    workers="engine",
)


def readings_of(samples: Samples) -> Readings:
    """Return the readings in vLLM's metrics."""
    value, first = samples.value, samples.first
    return Readings(
        started=samples.process_start(),
        waiting=first(SERIES.waiting),
        running=first(SERIES.running),
        kv_usage=samples.mean(*SERIES.kv_usage),
        prompt_tokens_total=first(SERIES.computed_tokens),
        generated_tokens_total=first(SERIES.generated_tokens),
        cached_tokens_total=first(SERIES.own_cached_tokens),
        preemptions_total=first(SERIES.preemptions),
        steps_total=value("vllm:iteration_tokens_total_count"),
        ttft_s_sum=first(SERIES.ttft, "_sum"),
        ttft_count=first(SERIES.ttft, "_count"),
        itl_s_sum=first(SERIES.gaps, "_sum"),
        itl_count=first(SERIES.gaps, "_count"),
        transfer_bytes_total=value("vllm:nixl_bytes_transferred_sum"),
        transfer_s_total=value(f"{_MOVE_S}_sum"),
        transfers_total=value(f"{_MOVE_S}_count"),
        transfer_failures_total=value("vllm:nixl_num_failed_transfers_total"),
        expired_total=value("vllm:nixl_num_kv_expired_reqs_total"),
        late_reads_total=value("vllm:nixl_num_notifications_after_expiry_total"),
        prompt_tokens_by_source=samples.by_label(_BY_SOURCE, _SOURCE),
    )


def pool_readings_of(samples: Samples) -> PoolReadings:
    """Return what vLLM tells beyond that, if it is asked itself."""
    return PoolReadings(
        engine=readings_of(samples),
        kv_capacity_tokens=_capacity(samples),
        finished_total=samples.first(SERIES.ended),
        finished_prompt_tokens_total=samples.first(SERIES.prompt_lengths, "_sum"),
        finished_output_tokens_total=samples.first(SERIES.answer_lengths, "_sum"),
        prefill_s_total=samples.value("vllm:request_prefill_time_seconds_sum"),
        prompt_lengths=samples.distribution(*SERIES.prompt_lengths),
        ttft=samples.distribution(*SERIES.ttft),
        tpot=samples.distribution(*SERIES.tpot, *SERIES.gaps),
    )


def _capacity(samples: Samples) -> float:
    """Return the tokens for which the KV caches of a pod have room, one for each engine."""
    try:
        return math.fsum(
            float(labels["num_gpu_blocks"]) * float(labels["block_size"]) for labels, _ in samples.by_name[CACHE]
        )
    except (KeyError, ValueError):
        return math.nan
