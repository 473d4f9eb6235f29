"""PURE: The DISAGG_* environment of workers, adapters and routers.

Pods and local processes are rendered from the same values.
"""

from __future__ import annotations

import json

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.api.scaling import TpotPercentile
from disagg_operator.desired.engine_inputs import DEFAULT_LEASE_S
from disagg_operator.performance.declared import profile_of
from disagg_wire.engines import AUTO
from disagg_wire.environment import AdapterVariable, RouterVariable, WorkerVariable


def worker_environment(dd: DisaggDeployment, role: str) -> dict[str, str]:
    """Return the environment that every worker of a pool gets, wherever it runs."""
    spec, pool = dd.spec, dd.spec.pool(role)
    out: dict[str, str] = {
        WorkerVariable.ROLE: role,
        WorkerVariable.MODEL_URI: _uri(dd),
        WorkerVariable.MODEL_NAME: spec.model.served_name,
        WorkerVariable.DTYPE: spec.engine.dtype,
        WorkerVariable.QUANTIZATION: spec.engine.quantization,
        WorkerVariable.PREFIX_CACHE: str(spec.engine.prefix_caching.enabled).lower(),
        WorkerVariable.EVICTION: spec.engine.prefix_caching.eviction,
        WorkerVariable.BLOCK_SIZE_TOKENS: str(spec.engine.block_size_tokens),
        WorkerVariable.MAX_RUNNING: str(pool.max_running_requests),
        WorkerVariable.MAX_BATCH_TOKENS: str(pool.max_batch_tokens),
        WorkerVariable.DRAIN_TIMEOUT_S: str(pool.drain.timeout_seconds),
        WorkerVariable.THREADS: str(spec.engine.threads),
    }
    if pool.parallelism.tensor > 1:
        out[WorkerVariable.TENSOR_PARALLEL] = str(pool.parallelism.tensor)
    if spec.engine.max_model_len is not None:
        out[WorkerVariable.MAX_MODEL_LEN] = str(spec.engine.max_model_len)
    if pool.kv_cache_size is not None:
        out[WorkerVariable.KV_CACHE_BYTES] = str(quantity_bytes(pool.kv_cache_size))
    if spec.engine.prefix_caching.host_memory is not None:
        out[WorkerVariable.HOST_CACHE_BYTES] = str(quantity_bytes(spec.engine.prefix_caching.host_memory))
    if spec.engine.numerics is not None:
        out[WorkerVariable.NUMERICS] = spec.engine.numerics.lower()
    if spec.kv_transfer.integrity is not None:
        out[WorkerVariable.TRANSFER_INTEGRITY] = spec.kv_transfer.integrity
    if (target_s := _step_target_s(dd, role)) is not None:
        out[WorkerVariable.DECODE_STEP_TARGET_S] = f"{target_s:g}"
    return out


def transport_environment(dd: DisaggDeployment) -> dict[str, str]:
    """Return what a bundled worker must know of the transport; `auto` is its default."""
    transport = dd.spec.kv_transfer.transport
    return {} if transport == AUTO else {WorkerVariable.TRANSPORT: transport}


def adapter_environment(dd: DisaggDeployment, role: str, worker_role: str) -> dict[str, str]:
    """Return the environment of every adapter of a pool, with the role of its workers."""
    spec, pool = dd.spec, dd.spec.pool(role)
    out: dict[str, str] = {
        AdapterVariable.ROLE: worker_role,
        AdapterVariable.ENGINE: spec.engine.type,
        AdapterVariable.MODEL_URI: _uri(dd),
        AdapterVariable.MODEL_NAME: spec.model.served_name,
        AdapterVariable.DTYPE: spec.engine.dtype,
        AdapterVariable.MAX_RUNNING: str(pool.max_running_requests),
        AdapterVariable.DRAIN_TIMEOUT_S: str(pool.drain.timeout_seconds),
        AdapterVariable.TENSOR_RATIO: f"{spec.prefill.parallelism.tensor}:{spec.decode.parallelism.tensor}",
        AdapterVariable.LEASE_S: str(spec.engine.lease_seconds or DEFAULT_LEASE_S),
        AdapterVariable.TRANSPORT: spec.kv_transfer.transport,
    }
    if spec.model.adapters:
        out[AdapterVariable.LORA_ADAPTERS] = json.dumps([adapter.name for adapter in spec.model.adapters])
    if spec.engine.experimental:
        out[AdapterVariable.EXPERIMENTAL] = "true"
    return out


def _uri(dd: DisaggDeployment) -> str:
    """Return the URI of the model, with the revision of one from the hub."""
    model = dd.spec.model
    return f"{model.uri}@{model.revision}" if model.revision and model.uri.startswith("hf://") else model.uri


def _step_target_s(dd: DisaggDeployment, role: str) -> float | None:
    """Return the time in seconds above which a decode step makes prefill send smaller batches.

    It is the objective itself, because a longer step meets it for no sequence. It is set only if
    the objective is not the default and the worker may prefill, because a pod is recreated when
    the value is added or changes.
    """
    target_s = dd.spec.objectives.tpot_seconds.p99
    prefills = role == "prefill" or dd.spec.scaling.role_flip
    return target_s if prefills and target_s != TpotPercentile().p99 else None


def router_environment(dd: DisaggDeployment) -> dict[str, str]:
    """Return the environment that every router gets, wherever it runs.

    The router counts the requests that meet the objectives, and for that it must know how long the
    prefill of a single prompt takes.
    """
    objectives, profile, zero = dd.spec.objectives, profile_of(dd), dd.spec.scaling.scale_to_zero
    out: dict[str, str] = {
        RouterVariable.MODEL_NAME: dd.spec.model.served_name,
        RouterVariable.QUEUE_MAX_DEPTH: str(dd.spec.router.queue.max_depth),
        RouterVariable.QUEUE_MAX_WAIT_S: str(dd.spec.router.queue.max_wait_seconds),
        RouterVariable.QUEUE_ORDER: dd.spec.router.queue.order,
        RouterVariable.OBJECTIVE_TTFT_S: f"{objectives.ttft_seconds.p99:g}",
        RouterVariable.OBJECTIVE_TPOT_S: f"{objectives.tpot_seconds.p99:g}",
        RouterVariable.PREFILL_A_S: f"{profile.a_s:.4g}",
        RouterVariable.PREFILL_B_S_PER_TOKEN: f"{profile.b_s_per_token:.4g}",
        RouterVariable.PREFILL_C_S_PER_TOKEN2: f"{profile.c_s_per_token2:.4g}",
    }
    if dd.spec.router.local_prefill_max_tokens is not None:
        out[RouterVariable.LOCAL_PREFILL_MAX_TOKENS] = str(dd.spec.router.local_prefill_max_tokens)
    if (liveness := dd.spec.router.liveness) is not None:
        out[RouterVariable.SILENCE_S] = f"{liveness.silence_seconds:g}"
        out[RouterVariable.STEP_ALLOWANCE] = f"{liveness.step_allowance:g}"
    if (upstream := dd.spec.router.upstream) is not None:
        out[RouterVariable.UPSTREAM_URL] = upstream.url
        out[RouterVariable.UPSTREAM_PERCENT] = str(upstream.percent)
    if (tracing := dd.spec.observability.tracing) is not None:
        out[RouterVariable.TRACING_ENDPOINT] = tracing.endpoint
        out[RouterVariable.TRACING_SAMPLING_RATIO] = f"{tracing.sampling_ratio:g}"
        if tracing.trust_parent:
            out[RouterVariable.TRACING_TRUST_PARENT] = "true"
    if zero is not None:
        out[RouterVariable.HOLD_MAX_WAIT_S] = str(zero.hold_seconds)
        # A router that starts while there are no workers cannot ask them.
        if dd.spec.model.adapters:
            out[RouterVariable.LORA_ADAPTERS] = json.dumps([adapter.name for adapter in dd.spec.model.adapters])
    return out
