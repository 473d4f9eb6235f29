"""PURE: The name of every environment variable, by the process that reads it and by who sets it.

A settings class has one field for each of its variables: the field `x_y` is read from DISAGG_X_Y.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

PREFIX = "DISAGG_"


class WorkerVariable(StrEnum):
    """The variables that the operator sets on workers, from the spec or from the pod.

    Nobody else may set them.
    """

    ROLE = "DISAGG_ROLE"
    MODEL_URI = "DISAGG_MODEL_URI"
    MODEL_NAME = "DISAGG_MODEL_NAME"
    MODEL_MOUNT = "DISAGG_MODEL_MOUNT"
    CACHE_DIR = "DISAGG_CACHE_DIR"
    HOST = "DISAGG_HOST"
    PORT = "DISAGG_PORT"
    KV_INTERFACE = "DISAGG_KV_INTERFACE"
    KV_HOST = "DISAGG_KV_HOST"
    KV_PORT = "DISAGG_KV_PORT"
    POD_NAME = "DISAGG_POD_NAME"
    POD_UID = "DISAGG_POD_UID"
    REVISION = "DISAGG_REVISION"
    CLUSTER_KEY_FILE = "DISAGG_CLUSTER_KEY_FILE"
    DTYPE = "DISAGG_DTYPE"
    QUANTIZATION = "DISAGG_QUANTIZATION"
    NUMERICS = "DISAGG_NUMERICS"
    BLOCK_SIZE_TOKENS = "DISAGG_BLOCK_SIZE_TOKENS"
    KV_CACHE_BYTES = "DISAGG_KV_CACHE_BYTES"
    HOST_CACHE_BYTES = "DISAGG_HOST_CACHE_BYTES"
    PREFIX_CACHE = "DISAGG_PREFIX_CACHE"
    EVICTION = "DISAGG_EVICTION"
    MAX_MODEL_LEN = "DISAGG_MAX_MODEL_LEN"
    MAX_RUNNING = "DISAGG_MAX_RUNNING"
    MAX_BATCH_TOKENS = "DISAGG_MAX_BATCH_TOKENS"
    DECODE_STEP_TARGET_S = "DISAGG_DECODE_STEP_TARGET_S"
    DRAIN_TIMEOUT_S = "DISAGG_DRAIN_TIMEOUT_S"
    THREADS = "DISAGG_THREADS"
    TENSOR_PARALLEL = "DISAGG_TENSOR_PARALLEL"
    TRANSFER_INTEGRITY = "DISAGG_TRANSFER_INTEGRITY"
    TRANSPORT = "DISAGG_TRANSPORT"
    RDMA_DEVICES = "DISAGG_RDMA_DEVICES"
    HF_TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable, no secret


class WorkerOption(StrEnum):
    """The variables of workers that `spec.engine.env` may set.

    The operator sets none of them, or gives a default that may be replaced.
    """

    HF_HOME = "HF_HOME"
    # The image sets this one: the folder of the compiled CPU kernels.
    KERNELS = "DISAGG_KERNELS"
    KV_CACHE_DTYPE = "DISAGG_KV_CACHE_DTYPE"
    MAX_WAITING = "DISAGG_MAX_WAITING"
    PREFILL_WAIT_S = "DISAGG_PREFILL_WAIT_S"
    PREFILL_UTILISATION = "DISAGG_PREFILL_UTILISATION"
    TICKET_LIFETIME_S = "DISAGG_TICKET_LIFETIME_S"
    TRANSFER_IDLE_S = "DISAGG_TRANSFER_IDLE_S"
    NIXL_OVER_TCP = "DISAGG_NIXL_OVER_TCP"
    TRANSFER_CONNECTIONS = "DISAGG_TRANSFER_CONNECTIONS"
    TRANSFER_BUFFERS = "DISAGG_TRANSFER_BUFFERS"
    DEVICE = "DISAGG_DEVICE"
    GROWTH_RESERVE_TOKENS = "DISAGG_GROWTH_RESERVE_TOKENS"
    SATURATING_TOKENS = "DISAGG_SATURATING_TOKENS"
    RANK_TIMEOUT_S = "DISAGG_RANK_TIMEOUT_S"
    RANK_START_TIMEOUT_S = "DISAGG_RANK_START_TIMEOUT_S"
    # What is kept of streams that can be resumed.
    RESUME_KEEP_S = "DISAGG_RESUME_KEEP_S"
    RESUME_KEEP_BYTES = "DISAGG_RESUME_KEEP_BYTES"
    RESUME_UNREAD_S = "DISAGG_RESUME_UNREAD_S"
    RESUME_UNREAD_STREAMS = "DISAGG_RESUME_UNREAD_STREAMS"
    LOG_LEVEL = "DISAGG_LOG_LEVEL"


class AdapterVariable(StrEnum):
    """The variables that the operator sets on adapters, the containers in front of other engines.

    Those with a name of WorkerVariable mean the same.
    """

    ROLE = "DISAGG_ROLE"
    MODEL_URI = "DISAGG_MODEL_URI"
    MODEL_NAME = "DISAGG_MODEL_NAME"
    HOST = "DISAGG_HOST"
    PORT = "DISAGG_PORT"
    KV_INTERFACE = "DISAGG_KV_INTERFACE"
    KV_HOST = "DISAGG_KV_HOST"
    KV_PORT = "DISAGG_KV_PORT"
    POD_NAME = "DISAGG_POD_NAME"
    POD_UID = "DISAGG_POD_UID"
    REVISION = "DISAGG_REVISION"
    CLUSTER_KEY_FILE = "DISAGG_CLUSTER_KEY_FILE"
    DTYPE = "DISAGG_DTYPE"
    MAX_RUNNING = "DISAGG_MAX_RUNNING"
    DRAIN_TIMEOUT_S = "DISAGG_DRAIN_TIMEOUT_S"
    # The name of the engine, and its port on the loopback interface or on the pod's address.
    ENGINE = "DISAGG_ENGINE"
    ENGINE_HOST = "DISAGG_ENGINE_HOST"
    ENGINE_PORT = "DISAGG_ENGINE_PORT"
    # A file with the key that the engine asks of its clients, for engines that must listen on the
    # pod's address.
    ENGINE_KEY_FILE = "DISAGG_ENGINE_KEY_FILE"
    # The folder with the model's tokenizer and configuration.
    MODEL_FILES = "DISAGG_MODEL_FILES"
    # The tensor parallel sizes of the two pools, as in "8:4" (prefill : decode).
    TENSOR_RATIO = "DISAGG_TENSOR_RATIO"
    # The seconds for which prefill keeps KV that decode has not read.
    LEASE_S = "DISAGG_LEASE_S"
    # The names of the LoRA adapters, as a JSON list.
    LORA_ADAPTERS = "DISAGG_LORA_ADAPTERS"
    # The port of SGLang's bootstrap server.
    BOOTSTRAP_PORT = "DISAGG_BOOTSTRAP_PORT"
    # The transport of KV that the spec asks for: auto, rdma or tcp.
    TRANSPORT = "DISAGG_TRANSPORT"
    # The file in which the engine's container says which RDMA devices it finds.
    FABRIC_REPORT = "DISAGG_FABRIC_REPORT"
    # A second opt-in, of engines whose hand-over is an experiment.
    EXPERIMENTAL = "DISAGG_EXPERIMENTAL"


class AdapterOption(StrEnum):
    """The variables of adapters that the operator leaves at their defaults."""

    MAX_WAITING = "DISAGG_MAX_WAITING"
    GROWTH_RESERVE_TOKENS = "DISAGG_GROWTH_RESERVE_TOKENS"
    TICKET_LIFETIME_S = "DISAGG_TICKET_LIFETIME_S"
    POLL_INTERVAL_S = "DISAGG_POLL_INTERVAL_S"
    PROBE_AFTER_S = "DISAGG_PROBE_AFTER_S"
    PROBE_TIMEOUT_S = "DISAGG_PROBE_TIMEOUT_S"
    START_TIMEOUT_S = "DISAGG_START_TIMEOUT_S"
    # What is kept of streams that can be resumed.
    RESUME_KEEP_S = "DISAGG_RESUME_KEEP_S"
    RESUME_KEEP_BYTES = "DISAGG_RESUME_KEEP_BYTES"
    RESUME_UNREAD_S = "DISAGG_RESUME_UNREAD_S"
    RESUME_UNREAD_STREAMS = "DISAGG_RESUME_UNREAD_STREAMS"
    LOG_LEVEL = "DISAGG_LOG_LEVEL"


class RouterVariable(StrEnum):
    """The variables that the operator sets on routers."""

    HOST = "DISAGG_HOST"
    PORT = "DISAGG_PORT"
    MODEL_NAME = "DISAGG_MODEL_NAME"
    CLUSTER_KEY_FILE = "DISAGG_CLUSTER_KEY_FILE"
    MEMBERSHIP = "DISAGG_MEMBERSHIP"
    NAMESPACE = "DISAGG_NAMESPACE"
    DEPLOYMENT = "DISAGG_DEPLOYMENT"
    API_KEYS_FILE = "DISAGG_API_KEYS_FILE"
    QUEUE_MAX_DEPTH = "DISAGG_QUEUE_MAX_DEPTH"
    QUEUE_MAX_WAIT_S = "DISAGG_QUEUE_MAX_WAIT_S"
    QUEUE_ORDER = "DISAGG_QUEUE_ORDER"
    # Of deployments that may be scaled to zero: how long a request waits for workers, and the names
    # of the LoRA adapters, as a JSON list.
    HOLD_MAX_WAIT_S = "DISAGG_HOLD_MAX_WAIT_S"
    LORA_ADAPTERS = "DISAGG_LORA_ADAPTERS"
    OBJECTIVE_TTFT_S = "DISAGG_OBJECTIVE_TTFT_S"
    OBJECTIVE_TPOT_S = "DISAGG_OBJECTIVE_TPOT_S"
    PREFILL_A_S = "DISAGG_PREFILL_A_S"
    PREFILL_B_S_PER_TOKEN = "DISAGG_PREFILL_B_S_PER_TOKEN"  # noqa: S105 - the name of a variable, no secret
    PREFILL_C_S_PER_TOKEN2 = "DISAGG_PREFILL_C_S_PER_TOKEN2"
    # The service beside the deployment to which a share of the requests goes.
    UPSTREAM_URL = "DISAGG_UPSTREAM_URL"
    UPSTREAM_PERCENT = "DISAGG_UPSTREAM_PERCENT"
    LOCAL_PREFILL_MAX_TOKENS = "DISAGG_LOCAL_PREFILL_MAX_TOKENS"
    # When a worker is given up that sends no heartbeats, or whose engine hangs.
    SILENCE_S = "DISAGG_SILENCE_S"
    STEP_ALLOWANCE = "DISAGG_STEP_ALLOWANCE"
    # Where the traces of requests go, and which of them.
    TRACING_ENDPOINT = "DISAGG_TRACING_ENDPOINT"
    TRACING_SAMPLING_RATIO = "DISAGG_TRACING_SAMPLING_RATIO"
    TRACING_TRUST_PARENT = "DISAGG_TRACING_TRUST_PARENT"
    TRACING_HEADERS_FILE = "DISAGG_TRACING_HEADERS_FILE"
    TRACING_CA_FILE = "DISAGG_TRACING_CA_FILE"


class RouterOption(StrEnum):
    """The variables of routers that the operator leaves at their defaults."""

    KUBE_API = "DISAGG_KUBE_API"
    REQUEST_TIMEOUT_S = "DISAGG_REQUEST_TIMEOUT_S"
    MAX_ATTEMPTS = "DISAGG_MAX_ATTEMPTS"
    MAX_BODY_BYTES = "DISAGG_MAX_BODY_BYTES"
    MAX_BODIES_BYTES = "DISAGG_MAX_BODIES_BYTES"
    MAX_CONNECTIONS = "DISAGG_MAX_CONNECTIONS"
    DRAIN_TIMEOUT_S = "DISAGG_DRAIN_TIMEOUT_S"
    DRAIN_GRACE_S = "DISAGG_DRAIN_GRACE_S"
    FIRST_TOKEN_TIMEOUT_S = "DISAGG_FIRST_TOKEN_TIMEOUT_S"  # noqa: S105 - the name of a variable, no secret
    STALL_TIMEOUT_S = "DISAGG_STALL_TIMEOUT_S"
    CLIENT_STALL_TIMEOUT_S = "DISAGG_CLIENT_STALL_TIMEOUT_S"
    POLL_INTERVAL_S = "DISAGG_POLL_INTERVAL_S"
    QUEUE_MAX_BYTES = "DISAGG_QUEUE_MAX_BYTES"
    CANARY_WARM_UP_S = "DISAGG_CANARY_WARM_UP_S"
    NAME_MEMORY_S = "DISAGG_NAME_MEMORY_S"
    UPSTREAM_MAX_RUNNING = "DISAGG_UPSTREAM_MAX_RUNNING"
    TRACING_QUEUE_SPANS = "DISAGG_TRACING_QUEUE_SPANS"
    TRACING_QUEUE_BYTES = "DISAGG_TRACING_QUEUE_BYTES"
    TRACING_TIMEOUT_S = "DISAGG_TRACING_TIMEOUT_S"
    LOG_LEVEL = "DISAGG_LOG_LEVEL"


class OperatorVariable(StrEnum):
    """The variables of the operator. The chart sets some of them; the others keep their
    defaults.
    """

    WORKER_IMAGE = "DISAGG_WORKER_IMAGE"
    ADAPTER_IMAGE = "DISAGG_ADAPTER_IMAGE"
    ROUTER_IMAGE = "DISAGG_ROUTER_IMAGE"
    WATCH_NAMESPACE = "DISAGG_WATCH_NAMESPACE"
    SCRAPERS = "DISAGG_SCRAPERS"
    WEB_PORTS = "DISAGG_WEB_PORTS"
    POLICY = "DISAGG_POLICY"
    RUNTIME_UPDATES = "DISAGG_RUNTIME_UPDATES"
    LEASE_NAMESPACE = "DISAGG_LEASE_NAMESPACE"
    LEASE_NAME = "DISAGG_LEASE_NAME"
    LEASE_DURATION_S = "DISAGG_LEASE_DURATION_S"
    LEASE_RENEW_DEADLINE_S = "DISAGG_LEASE_RENEW_DEADLINE_S"
    LEASE_RETRY_S = "DISAGG_LEASE_RETRY_S"
    POD_NAME = "DISAGG_POD_NAME"
    HEALTH_HOST = "DISAGG_HEALTH_HOST"
    HEALTH_PORT = "DISAGG_HEALTH_PORT"
    WORKERS = "DISAGG_WORKERS"
    RECONCILE_TIMEOUT_S = "DISAGG_RECONCILE_TIMEOUT_S"
    RESYNC_INTERVAL_S = "DISAGG_RESYNC_INTERVAL_S"
    WATCH_SILENCE_S = "DISAGG_WATCH_SILENCE_S"
    DEBOUNCE_S = "DISAGG_DEBOUNCE_S"
    SCRAPE_INTERVAL_S = "DISAGG_SCRAPE_INTERVAL_S"
    SCALER_ONLY = "DISAGG_SCALER_ONLY"
    SCALER_INTERVAL_S = "DISAGG_SCALER_INTERVAL_S"
    RECORD_DIR = "DISAGG_RECORD_DIR"
    SCRAPE_TIMEOUT_S = "DISAGG_SCRAPE_TIMEOUT_S"
    SCRAPE_CONCURRENCY = "DISAGG_SCRAPE_CONCURRENCY"
    PROMETHEUS_TIMEOUT_S = "DISAGG_PROMETHEUS_TIMEOUT_S"
    KUBE_TIMEOUT_S = "DISAGG_KUBE_TIMEOUT_S"
    HEARTBEAT_TIMEOUT_S = "DISAGG_HEARTBEAT_TIMEOUT_S"
    SHUTDOWN_TIMEOUT_S = "DISAGG_SHUTDOWN_TIMEOUT_S"
    LOG_LEVEL = "DISAGG_LOG_LEVEL"
    # This one is read where credentials are chosen: a kubeconfig is preferred to the pod's service
    # account.
    USE_KUBECONFIG = "DISAGG_USE_KUBECONFIG"


def variable_of(field: str) -> str:
    """Return the variable from which the settings field `field` is read."""
    return f"{PREFIX}{field.upper()}"


class SettingsError(Exception):
    """Raised when a variable is missing or wrong; the message names it."""


def refused(errors: Iterable[Mapping[str, Any]]) -> SettingsError:
    """Return the refusal of settings for the errors that pydantic found, which names every wrong
    variable.
    """
    return SettingsError("; ".join(f"{variable_of(str(e['loc'][0]))}: {e['msg']}" for e in errors))


def fields_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of all DISAGG_* variables by the name of their settings field.

    An empty variable counts as not set.
    """
    found = {k: v for k, v in environment.items() if k.startswith(PREFIX) and v != ""}
    return {name.removeprefix(PREFIX).lower(): value for name, value in found.items()}
