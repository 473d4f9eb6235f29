"""PURE: the environment variables of a worker that `engine.env` must leave alone."""

from __future__ import annotations

# All that a worker's container may get from the spec or from its pod. A test renders it.
WORKER_ENVIRONMENT_SET_BY_OPERATOR = (
    "DISAGG_BLOCK_SIZE_TOKENS",
    "DISAGG_CACHE_DIR",
    "DISAGG_CLUSTER_KEY_FILE",
    "DISAGG_DECODE_STEP_TARGET_S",
    "DISAGG_DRAIN_TIMEOUT_S",
    "DISAGG_DTYPE",
    "DISAGG_EVICTION",
    "DISAGG_HOST",
    "DISAGG_HOST_CACHE_BYTES",
    "DISAGG_KV_CACHE_BYTES",
    "DISAGG_KV_INTERFACE",
    "DISAGG_KV_PORT",
    "DISAGG_MAX_BATCH_TOKENS",
    "DISAGG_MAX_MODEL_LEN",
    "DISAGG_MAX_RUNNING",
    "DISAGG_MODEL_MOUNT",
    "DISAGG_MODEL_NAME",
    "DISAGG_MODEL_URI",
    "DISAGG_POD_NAME",
    "DISAGG_POD_UID",
    "DISAGG_PORT",
    "DISAGG_PREFIX_CACHE",
    "DISAGG_QUANTIZATION",
    "DISAGG_REVISION",
    "DISAGG_ROLE",
    "DISAGG_TENSOR_PARALLEL",
    "DISAGG_THREADS",
    "HF_HOME",
    "HF_TOKEN",
)
# Never rendered: the address of KV is that of DISAGG_KV_INTERFACE or else of the pod, DISAGG_HOST.
_LEFT_UNSET = ("DISAGG_KV_HOST",)


def reserved_environment() -> tuple[str, ...]:
    """Return the names that `engine.env` must not hold, in the order of the alphabet.

    A second value would contradict what the spec, and with it the operator's status, says.
    """
    return tuple(sorted({*WORKER_ENVIRONMENT_SET_BY_OPERATOR, *_LEFT_UNSET}))
