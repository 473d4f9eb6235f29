"""PURE: The metrics of LMDeploy, as its adapter reads them."""

from __future__ import annotations

from disagg_wire.engine_metrics.readings import Readings
from disagg_wire.engine_metrics.sample_table import Samples

_TTFT, _GAPS = "lmdeploy:time_to_first_token_seconds", "lmdeploy:iter_token_latency"


def readings_of(samples: Samples) -> Readings:
    """Return the readings in LMDeploy's metrics."""
    value = samples.value
    return Readings(
        started=samples.process_start(),
        waiting=value("lmdeploy:num_requests_waiting") + value("lmdeploy:num_api_requests_waiting"),
        running=value("lmdeploy:num_requests_running"),
        kv_usage=samples.mean("lmdeploy:gpu_cache_usage_perc"),
        prompt_tokens_total=value("lmdeploy:prompt_tokens_total"),
        generated_tokens_total=value("lmdeploy:generation_tokens_total"),
        cached_tokens_total=value("lmdeploy:cached_tokens_total"),
        steps_total=value("lmdeploy:iteration_tokens_total_count"),
        ttft_s_sum=value(f"{_TTFT}_sum"),
        ttft_count=value(f"{_TTFT}_count"),
        itl_s_sum=value(f"{_GAPS}_sum"),
        itl_count=value(f"{_GAPS}_count"),
    )
