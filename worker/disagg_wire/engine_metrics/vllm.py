"""PURE: The metrics of vLLM."""

from __future__ import annotations

import math

from disagg_wire.engine_metrics.readings import PoolReadings, Readings
from disagg_wire.engine_metrics.sample_table import Samples
from disagg_wire.series import LOCAL_COMPUTE


def readings_of(samples: Samples) -> Readings:
    """Return the readings in vLLM's metrics."""
    value = samples.value
    return Readings(
        started=f"{samples.value('process_start_time_seconds'):.2f}",
        waiting=value("vllm:num_requests_waiting"),
        running=value("vllm:num_requests_running"),
        kv_usage=samples.mean("vllm:kv_cache_usage_perc"),
        # request_prefill_kv_computed_tokens counts what came from another engine, too.
        prompt_tokens_total=value("vllm:prompt_tokens_by_source_total", source=LOCAL_COMPUTE),
        generated_tokens_total=value("vllm:generation_tokens_total"),
        cached_tokens_total=value("vllm:prefix_cache_hits_total"),
        preemptions_total=value("vllm:num_preemptions_total"),
        steps_total=value("vllm:iteration_tokens_total_count"),
        ttft_s_sum=value("vllm:time_to_first_token_seconds_sum"),
        ttft_count=value("vllm:time_to_first_token_seconds_count"),
        itl_s_sum=value("vllm:inter_token_latency_seconds_sum"),
        itl_count=value("vllm:inter_token_latency_seconds_count"),
        transfer_bytes_total=value("vllm:nixl_bytes_transferred_sum"),
        transfer_s_total=value("vllm:nixl_xfer_time_seconds_sum"),
        transfers_total=value("vllm:nixl_xfer_time_seconds_count"),
        transfer_failures_total=value("vllm:nixl_num_failed_transfers_total"),
        expired_total=value("vllm:nixl_num_kv_expired_reqs_total"),
        late_reads_total=value("vllm:nixl_num_notifications_after_expiry_total"),
        prompt_tokens_by_source=samples.by_label("vllm:prompt_tokens_by_source_total", "source"),
    )


def pool_readings_of(samples: Samples) -> PoolReadings:
    """Return what vLLM tells beyond that, if it is asked itself."""
    value = samples.value
    return PoolReadings(
        engine=readings_of(samples),
        kv_capacity_tokens=_capacity(samples),
        finished_total=value("vllm:request_success_total"),
        finished_prompt_tokens_total=value("vllm:request_prompt_tokens_sum"),
        finished_output_tokens_total=value("vllm:request_generation_tokens_sum"),
        prefill_s_total=value("vllm:request_prefill_time_seconds_sum"),
        prompt_lengths=samples.distribution("vllm:request_prompt_tokens"),
        ttft=samples.distribution("vllm:time_to_first_token_seconds"),
        tpot=samples.distribution("vllm:request_time_per_output_token_seconds", "vllm:inter_token_latency_seconds"),
    )


def _capacity(samples: Samples) -> float:
    """Return the tokens for which the KV caches of a pod have room, one for each engine."""
    try:
        return math.fsum(
            float(labels["num_gpu_blocks"]) * float(labels["block_size"])
            for labels, _ in samples.by_name["vllm:cache_config_info"]
        )
    except (KeyError, ValueError):
        return math.nan
