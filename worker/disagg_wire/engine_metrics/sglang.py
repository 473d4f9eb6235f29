"""PURE: The metrics of SGLang."""

from __future__ import annotations

import hashlib

from disagg_wire.engine_metrics.readings import NAN, PoolReadings, Readings
from disagg_wire.engine_metrics.sample_table import Samples

_MIB = 1 << 20


def readings_of(samples: Samples) -> Readings:
    """Return the readings in SGLang's metrics.

    The counters of tokens that grow while requests run are preferred: the others grow when requests
    end, so that they stand still during a long one.
    """
    value = samples.value
    by_mode = samples.by_label("sglang:realtime_tokens_total", "mode")
    queues = ("num_prefill_bootstrap_queue_reqs", "num_decode_prealloc_queue_reqs", "num_decode_transfer_queue_reqs")
    beyond = [value(f"sglang:{name}") for name in queues]
    return Readings(
        started=started_of(samples),
        waiting=value("sglang:num_queue_reqs") + sum(n for n in beyond if n == n),
        running=value("sglang:num_running_reqs"),
        kv_usage=samples.mean("sglang:token_usage"),
        prompt_tokens_total=by_mode.get("prefill_compute", value("sglang:prompt_tokens_total")),
        generated_tokens_total=by_mode.get("decode", value("sglang:generation_tokens_total")),
        cached_tokens_total=by_mode.get("prefill_cache", value("sglang:cached_tokens_total")),
        preemptions_total=value("sglang:num_retracted_requests_total"),
        ttft_s_sum=value("sglang:time_to_first_token_seconds_sum"),
        ttft_count=value("sglang:time_to_first_token_seconds_count"),
        itl_s_sum=value("sglang:inter_token_latency_seconds_sum"),
        itl_count=value("sglang:inter_token_latency_seconds_count"),
        transfer_bytes_total=value("sglang:kv_transfer_total_mb_sum") * _MIB,
        transfer_s_total=value("sglang:kv_transfer_latency_ms_sum") / 1000,
        transfers_total=value("sglang:kv_transfer_latency_ms_count"),
        transfer_failures_total=_sum(samples, "num_transfer_failed_reqs_total", "num_bootstrap_failed_reqs_total"),
    )


def pool_readings_of(samples: Samples) -> PoolReadings:
    """Return what SGLang tells beyond that, if it is asked itself."""
    value = samples.value
    return PoolReadings(
        engine=readings_of(samples),
        kv_capacity_tokens=value("sglang:max_total_num_tokens"),
        finished_total=value("sglang:num_requests_total"),
        finished_prompt_tokens_total=value("sglang:prompt_tokens_total"),
        finished_output_tokens_total=value("sglang:generation_tokens_total"),
        prompt_lengths=samples.distribution("sglang:prompt_tokens_histogram"),
        ttft=samples.distribution("sglang:time_to_first_token_seconds"),
        tpot=samples.distribution("sglang:request_time_per_output_token_seconds", "sglang:inter_token_latency_seconds"),
    )


def _sum(samples: Samples, *names: str) -> float:
    found = [x for x in (samples.value(f"sglang:{name}") for name in names) if x == x]
    return sum(found) if found else NAN


def started_of(samples: Samples) -> str:
    """Return the seconds that each phase of the start took, which no two starts share."""
    phases = samples.by_label("sglang:startup_time_seconds", "phase")
    return hashlib.sha256(repr(sorted(phases.items())).encode()).hexdigest()[:32] if phases else ""
