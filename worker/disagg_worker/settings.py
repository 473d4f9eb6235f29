"""The settings of a worker process, read once from DISAGG_* environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from disagg_protocol.keep_limits import KEEP_BYTES, KEEP_S, UNREAD_S, UNREAD_STREAMS, KeepLimits
from disagg_wire.cluster_key import ClusterKeyError, read_key
from disagg_wire.environment import SettingsError, WorkerVariable, fields_in, refused
from disagg_wire.eviction import Eviction
from disagg_wire.integrity import MAC, Integrity
from disagg_wire.roles import Role
from disagg_worker.values.choices import Numerics


class Settings(BaseModel):
    """The settings of a worker. The field `x_y` is read from the variable DISAGG_X_Y."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role = Field(description="The role with which the worker starts: prefill, decode or both.")
    model_uri: str = Field(
        min_length=1,
        description="The model: `hf://org/name[@revision]`, `pvc://claim/path` or `file:///path`.",
    )
    model_name: str = Field(min_length=1, description="The name under which clients ask for the model.")
    model_mount: Path = Field(
        Path("/mnt/model"), description="The folder at which the claim of a pvc:// model is mounted."
    )
    cache_dir: Path = Field(Path("/cache"), description="The folder into which hf:// models are downloaded.")
    host: str = Field("127.0.0.1", description="The address on which the HTTP server listens.")
    port: int = Field(8000, ge=0, le=65535, description="The TCP port of the HTTP server; 0 takes any free port.")
    kv_interface: str = Field(
        "",
        description="The network interface whose IPv4 address is used for KV transfers. The worker waits up to 10 "
        "seconds for the address. Empty: kv_host decides.",
    )
    rdma_devices: int = Field(
        0,
        ge=0,
        le=4096,
        description="The RDMA devices that the pod asks for. Above 0 the worker looks for them, registers a buffer as "
        "large as its KV cache at each, and tells what it found. Their interfaces are counted on from kv_interface.",
    )
    kv_host: str = Field(
        "", description="The address for KV transfers if kv_interface is empty. Empty: the same as host."
    )
    kv_port: int = Field(
        9000, ge=0, le=65535, description="The TCP port on which KV transfers are received; 0 takes any free port."
    )
    pod_name: str = Field("", description="The name of the pod, as the worker reports it to routers.")
    pod_uid: str = Field(
        "", description="The UID of the pod, the first part of the worker's incarnation. Empty: a random one."
    )
    revision: str = Field("", description="The revision of the deployment, as the worker reports it to routers.")
    cluster_key_file: Path = Field(
        description="The file with the cluster key, at least 32 bytes. It authenticates the router and signs tickets."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="The dtype of weights and activations. auto: that of the checkpoint, but bfloat16 instead of "
        "float16 on a CPU.",
    )
    quantization: Literal["none", "int8", "int4", "fp8"] = Field(
        "none",
        description="The quantisation of the weights while they are loaded. A checkpoint that is quantised already "
        "needs none.",
    )
    numerics: Numerics = Field(
        "auto",
        description="Whether rounding may depend on who else is in the batch, and on whether a token is decoded or "
        "prefilled. exact: it may not; a worker on a GPU then does not start, and one without the CPU kernels is slow. "
        "fast: it may, where that is faster. auto: exact with the CPU kernels, fast elsewhere.",
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto",
        description="The dtype of the KV cache. auto: that of the weights. fp8 (e4m3, saturating) holds twice as many "
        "tokens as a 16-bit dtype.",
    )
    block_size_tokens: int = Field(16, ge=1, le=1024, description="The size of a KV block in tokens.")
    kv_cache_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="The size of the KV cache in bytes, over all ranks. Unset: 256 MiB on a CPU, and on GPUs 85 % of "
        "the memory that is free once the weights are loaded.",
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="The longest sequence (prompt and output) in tokens. Unset: as many as the model supports.",
    )
    max_running: int = Field(
        64,
        ge=1,
        le=4096,
        description="The most sequences that are decoded together, and the most prompts of a prefill batch.",
    )
    max_waiting: int = Field(256, ge=1, le=65536, description="The most requests that wait; further ones are refused.")
    max_batch_tokens: int = Field(2048, ge=16, description="The most tokens of a prefill batch.")
    prefill_wait_s: float = Field(
        0.05,
        ge=0,
        le=10,
        description="The longest time, in seconds, for which a prompt waits for others to share its batch.",
    )
    prefill_utilisation: float = Field(
        0.85,
        gt=0,
        le=1,
        description="The share of saturating_tokens with which a prefill batch starts without further waiting.",
    )
    ticket_lifetime_s: float = Field(
        30.0, gt=0, le=3600, description="The time in seconds after which an unused ticket for a KV transfer expires."
    )
    transfer_idle_s: float = Field(
        5.0, gt=0, le=3600, description="The time in seconds without a frame after which a KV transfer is broken off."
    )
    transfer_connections: int = Field(
        2,
        ge=1,
        le=4,
        description="The most TCP connections over which a prefill worker sends the KV of one request.",
    )
    transfer_buffers: int = Field(
        16,
        ge=1,
        le=1024,
        description="The number of buffers in host memory through which KV goes to and from a GPU, for all transfers "
        "together. Each is as large as the largest frame that it has held, 4 to 8 MiB.",
    )
    transfer_integrity: Integrity = Field(
        MAC,
        description="The check of KV transfers that a decode worker asks for. mac: nobody without the cluster key can "
        "change the KV. crc32c: damage is noticed, for a network that nobody else reaches.",
    )
    transport: Literal["auto", "rdma", "nvlink", "shm", "tcp"] = Field(
        "auto",
        description="The transport of KV: the best that both workers of a pair have (auto), one that is preferred to "
        "the others, or tcp alone. All but tcp need NIXL; without it KV goes over TCP.",
    )
    nixl_over_tcp: bool = Field(
        False,
        description="Whether NIXL moves the KV over TCP where two workers have nothing faster, to try it on a "
        "network. The worker's own TCP is faster.",
    )
    drain_timeout_s: float = Field(
        300.0,
        ge=0,
        le=86400,
        description="The time in seconds for running requests to finish after SIGTERM; then they are broken off.",
    )
    threads: int = Field(1, ge=1, le=1024, description="The number of threads that compute on a CPU.")
    device: Literal["auto", "cpu", "cuda", "plain"] = Field(
        "auto",
        description="The device that computes. auto: the GPU if there is one, else the CPU. plain: the CPU in plain "
        "torch, without the CPU kernels.",
    )
    prefix_cache: bool = Field(
        True, description="Whether the KV of earlier prompts of the same tenant is used again for equal prefixes."
    )
    eviction: Eviction = Field(
        "lru",
        description="The cached KV block that is evicted first: the one that nobody has used for longest (lru) or the "
        "one that was computed first (fifo).",
    )
    host_cache_bytes: int = Field(
        0, ge=0, description="The host memory for evicted KV blocks in bytes. 0: evicted blocks are lost."
    )
    growth_reserve_tokens: int = Field(
        128,
        ge=1,
        le=1 << 20,
        description="The number of output tokens for which a request gets KV blocks when it is admitted.",
    )
    saturating_tokens: int = Field(
        256,
        ge=1,
        le=1 << 20,
        description="The size of a prefill batch, in tokens, from which on larger batches compute no more tokens per "
        "second (to be measured, see benchmarks/).",
    )
    decode_step_target_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="The duration of a decode step, in seconds, above which prefill batches shrink. Unset: they do "
        "not shrink for slow steps.",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="The number of processes (and GPUs) over which the worker is split."
    )
    rank_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="The longest time, in seconds, of one exchange between the processes of a split worker.",
    )
    rank_start_timeout_s: float = Field(
        600.0,
        gt=0,
        le=86400,
        description="The longest time, in seconds, until all processes of a split worker are ready, once the first "
        "one has loaded its weights.",
    )
    resume_keep_s: float = KEEP_S
    resume_keep_bytes: int = KEEP_BYTES
    resume_unread_s: float = UNREAD_S
    resume_unread_streams: int = UNREAD_STREAMS
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least severity of the messages that are logged."
    )

    @property
    def keep_limits(self) -> KeepLimits:
        """What streams that can be resumed may cost."""
        return KeepLimits(self.resume_keep_s, self.resume_keep_bytes, self.resume_unread_s, self.resume_unread_streams)

    def cluster_key(self) -> bytes:
        """Return the bytes of the cluster key.

        Raises SettingsError if the file is missing, unreadable or too short: there is no default.
        """
        try:
            return read_key(self.cluster_key_file)
        except ClusterKeyError as error:
            raise SettingsError(f"{WorkerVariable.CLUSTER_KEY_FILE}: {error}") from None


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return the settings in an environment, in which an empty variable counts as not set.

    Raises SettingsError, which names every wrong variable.
    """
    try:
        return Settings.model_validate(fields_in(environment))
    except ValidationError as error:
        raise refused(error.errors()) from None
