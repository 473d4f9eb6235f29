"""PURE: the DISAGG_* environment of workers and routers.

Pods and local processes are rendered from the same values.
"""

from __future__ import annotations

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.api.scaling import TpotPercentile
from disagg_operator.performance.declared import profile_of


def worker_environment(dd: DisaggDeployment, role: str) -> dict[str, str]:
    """What every worker of a pool gets, wherever it runs."""
    spec, pool = dd.spec, dd.spec.pool(role)
    uri = (
        f"{spec.model.uri}@{spec.model.revision}"
        if spec.model.revision and spec.model.uri.startswith("hf://")
        else spec.model.uri
    )
    out = {
        "DISAGG_ROLE": role,
        "DISAGG_MODEL_URI": uri,
        "DISAGG_MODEL_NAME": spec.model.served_name,
        "DISAGG_DTYPE": spec.engine.dtype,
        "DISAGG_QUANTIZATION": spec.engine.quantization,
        "DISAGG_PREFIX_CACHE": str(spec.engine.prefix_caching.enabled).lower(),
        "DISAGG_EVICTION": spec.engine.prefix_caching.eviction,
        "DISAGG_BLOCK_SIZE_TOKENS": str(spec.engine.block_size_tokens),
        "DISAGG_MAX_RUNNING": str(pool.max_running_requests),
        "DISAGG_MAX_BATCH_TOKENS": str(pool.max_batch_tokens),
        "DISAGG_DRAIN_TIMEOUT_S": str(pool.drain.timeout_seconds),
        "DISAGG_THREADS": str(spec.engine.threads),
    }
    if pool.parallelism.tensor > 1:
        out["DISAGG_TENSOR_PARALLEL"] = str(pool.parallelism.tensor)
    if spec.engine.max_model_len is not None:
        out["DISAGG_MAX_MODEL_LEN"] = str(spec.engine.max_model_len)
    if pool.kv_cache_size is not None:
        out["DISAGG_KV_CACHE_BYTES"] = str(quantity_bytes(pool.kv_cache_size))
    if spec.engine.prefix_caching.host_memory is not None:
        out["DISAGG_HOST_CACHE_BYTES"] = str(quantity_bytes(spec.engine.prefix_caching.host_memory))
    if (target_s := _step_target_s(dd, role)) is not None:
        out["DISAGG_DECODE_STEP_TARGET_S"] = f"{target_s:g}"
    return out


def _step_target_s(dd: DisaggDeployment, role: str) -> float | None:
    """How long a decode step may take before prefill sends decode less at once: a step that takes
    longer than the objective keeps it for nobody. Only where an objective is set, and for workers
    that may be prefill's: a pod that gets it, or another one, is made anew.
    """
    target_s = dd.spec.objectives.tpot_seconds.p99
    prefills = role == "prefill" or dd.spec.scaling.role_flip
    return target_s if prefills and target_s != TpotPercentile().p99 else None


def router_environment(dd: DisaggDeployment) -> dict[str, str]:
    """What every router gets, wherever it runs: it counts who keeps the objectives, and has to know
    what a prompt takes alone.
    """
    objectives, profile = dd.spec.objectives, profile_of(dd)
    return {
        "DISAGG_MODEL_NAME": dd.spec.model.served_name,
        "DISAGG_QUEUE_MAX_DEPTH": str(dd.spec.router.queue.max_depth),
        "DISAGG_QUEUE_MAX_WAIT_S": str(dd.spec.router.queue.max_wait_seconds),
        "DISAGG_QUEUE_ORDER": dd.spec.router.queue.order,
        "DISAGG_OBJECTIVE_TTFT_S": f"{objectives.ttft_seconds.p99:g}",
        "DISAGG_OBJECTIVE_TPOT_S": f"{objectives.tpot_seconds.p99:g}",
        "DISAGG_PREFILL_A_S": f"{profile.a_s:.4g}",
        "DISAGG_PREFILL_B_S_PER_TOKEN": f"{profile.b_s_per_token:.4g}",
        "DISAGG_PREFILL_C_S_PER_TOKEN2": f"{profile.c_s_per_token2:.4g}",
    }
