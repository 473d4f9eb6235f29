"""The settings of a router process, read once from DISAGG_* environment variables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from disagg_router.key_file import ApiKey, KeyFileError, parse
from disagg_router.objectives import Objectives
from disagg_wire.cluster_key import ClusterKeyError, bearer_of, read_key
from disagg_wire.environment import RouterVariable, SettingsError, fields_in, refused

# A request that has waited this long goes first at times (turn_order.py). A third of the longest
# wait is used instead if that is less.
_PATIENCE_S = 20.0
# The time for running requests to finish after SIGTERM.
_DRAIN_S = 110.0


class Settings(BaseModel):
    """The settings of a router; the field `x_y` is read from the variable DISAGG_X_Y."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    host: str = Field("127.0.0.1", description="The address that the HTTP server listens on.")
    port: int = Field(
        8080, ge=0, le=65535, description="The TCP port that the HTTP server listens on; 0 for any free port."
    )
    model_name: str = Field(
        min_length=1,
        description="The name that requests may ask for before any worker serves it. What is served under which name,"
        " the workers say.",
    )
    cluster_key_file: Path = Field(
        description="The file with the cluster key, of at least 32 bytes, that routers and workers share."
    )
    membership: str = Field(
        pattern=r"^(kubernetes|file:///.+)$",
        description="The source of the list of workers: `kubernetes` for EndpointSlices, or the URL of a JSON file.",
    )
    namespace: str = Field("", description="The namespace of the deployment; required if `membership` is `kubernetes`.")
    deployment: str = Field("", description="The name of the deployment; required if `membership` is `kubernetes`.")
    kube_api: str = Field("https://kubernetes.default.svc", description="The URL of the Kubernetes API server.")
    queue_max_depth: int = Field(
        1024, ge=0, le=1_000_000, description="The number of requests that may wait in the queue."
    )
    queue_max_bytes: int = Field(
        64 << 20, ge=0, le=1 << 40, description="The total size of the requests that may wait in the queue, in bytes."
    )
    queue_max_wait_s: float = Field(
        60.0, ge=0, le=3600, description="The longest time that a request waits in the queue, in seconds."
    )
    hold_max_wait_s: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="The longest time that a request waits for workers of its model while there are none, in seconds."
        " By default it is `queue_max_wait_s`. The time that a request waits in the queue, and that it may take in"
        " all, begins only after that.",
    )
    lora_adapters: list[str] = Field(
        [],
        description="The names of the LoRA adapters that requests may ask for before any worker serves them, as a JSON"
        " list.",
    )
    queue_order: Literal["EarliestDeadline", "FirstComeFirstServed"] = Field(
        "EarliestDeadline",
        description="The order of the queue. `EarliestDeadline` needs `objective_ttft_s`; without it, requests are"
        " served in the order of arrival.",
    )
    name_memory_s: float = Field(
        300.0,
        ge=0,
        le=86400,
        description="The time for which requests for a name still wait after its last workers are gone, in seconds."
        " After that, the name does not exist.",
    )
    request_timeout_s: float = Field(
        600.0, gt=0, le=86400, description="The longest time from a request's arrival to its last token, in seconds."
    )
    max_attempts: int = Field(4, ge=1, le=32, description="The number of failed attempts after which a request fails.")
    api_keys_file: Path | None = Field(
        None,
        description="The file with the accepted API keys, separated by white space, or a JSON object with a list `keys`"
        " of objects: `key`, `limits` (`requestsPerMinute`, `tokensPerMinute`, `concurrency`) and `priority`. It is"
        " read again when it changes. Without a file, no key is required.",
    )
    max_body_bytes: int = Field(
        8 << 20, ge=1024, le=1 << 30, description="The largest accepted body of a request, in bytes."
    )
    max_bodies_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 40,
        description="The most bytes of bodies that are on their way or not parsed yet, over all requests; further ones"
        " get 503.",
    )
    max_connections: int = Field(
        4096,
        ge=16,
        le=1_000_000,
        description="The most connections of clients. Beyond that, one on which no request has come goes for each new"
        " one, of the peer that has most of them. Where the process may open fewer than three files for each, there"
        " are fewer.",
    )
    drain_timeout_s: float | None = Field(
        None,
        ge=0,
        le=86400,
        description="The time that requests have to finish after SIGTERM, in seconds. By default it is 110, and where"
        " `hold_max_wait_s` is set, that long in addition.",
    )
    drain_grace_s: float | None = Field(
        None,
        ge=0,
        le=600,
        description="The time after SIGTERM during which new requests are still taken, in seconds. By default it is 5"
        " if `membership` is `kubernetes`, and 0 otherwise.",
    )
    first_token_timeout_s: float = Field(
        120.0,
        gt=0,
        le=86400,
        description="The longest time that an attempt waits for an event before its first token, in seconds.",
    )
    stall_timeout_s: float = Field(
        60.0, gt=0, le=86400, description="The longest time that an attempt waits between two tokens, in seconds."
    )
    client_stall_timeout_s: float = Field(
        60.0,
        gt=0,
        le=86400,
        description="The time after which a client is cut off that reads nothing of its answer, or less than 1 KiB/s"
        " while the router waits for it, in seconds; what it has asked for ends then. It takes up to a quarter more.",
    )
    objective_ttft_s: float | None = Field(
        None, gt=0, le=3600, description="The objective for the time to first token, in seconds."
    )
    objective_tpot_s: float | None = Field(
        None, gt=0, le=3600, description="The objective for the time per output token after the first, in seconds."
    )
    prefill_a_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="The constant term a of a + b*n + c*n^2, the time that a prompt of n uncached tokens takes alone,"
        " in seconds. The limit for its first token is never below 5 times that time.",
    )
    prefill_b_s_per_token: float = Field(
        0.0, ge=0, le=60, description="The linear term b of that time, in seconds per token."
    )
    prefill_c_s_per_token2: float = Field(
        0.0, ge=0, le=1, description="The quadratic term c of that time, in seconds per token squared."
    )
    canary_warm_up_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="The time after this router's first request to a worker for which its requests do not count for a"
        " canary, in seconds: it may compile and warm up. 0: all count.",
    )
    local_prefill_max_tokens: int = Field(
        64,
        ge=0,
        le=1 << 20,
        description="The most tokens of a prompt that decode prefills itself, if it has the KV of all before them. 0:"
        " it prefills nothing while there is a prefill worker.",
    )
    upstream_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s?#@]+$",
        description="The URL of a service with the same API, to which a share of the requests goes, without `/v1`.",
    )
    upstream_percent: float = Field(
        100.0, ge=0, le=100, description="The percentage of the requests that go to `upstream_url`."
    )
    upstream_max_running: int = Field(
        1024, ge=1, le=1_000_000, description="The number of requests that may run there; further ones get 429."
    )
    silence_s: float = Field(
        1.5,
        ge=1,
        le=60,
        description="The time without a heartbeat after which a worker is given up, with all its streams, in seconds. A"
        " step of its engine that takes longer than allowed is given up after so much more.",
    )
    step_allowance: float = Field(
        3.0,
        ge=1,
        le=100,
        description="How many times as long as a worker has announced a step of its engine may take.",
    )
    tracing_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s?#@]+$",
        description="The URL of a collector that takes OTLP over HTTP, such as `http://collector:4318`; `/v1/traces` is"
        " appended. Without it, nothing is traced.",
    )
    tracing_sampling_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The share of the traces that is kept of requests that were neither late nor failed nor tried"
        " again; of those, all are kept.",
    )
    tracing_trust_parent: bool = Field(
        False,
        description="Whether a request continues the trace that its header `traceparent` names, and is kept if and only"
        " if that is recorded. Otherwise it has a trace of its own that links to it.",
    )
    tracing_headers_file: Path | None = Field(
        None,
        description="The file with headers for the collector, a line `Name: value` for each. It is read again when it"
        " changes.",
    )
    tracing_ca_file: Path | None = Field(
        None,
        description="The file with the PEM certificates of the authorities that the collector's certificate is checked"
        " against. By default those of the system. It is read again when it changes.",
    )
    tracing_queue_spans: int = Field(
        8192,
        ge=16,
        le=1 << 20,
        description="The number of spans that may wait for the collector; further ones are lost.",
    )
    tracing_queue_bytes: int = Field(
        8 << 20, ge=1 << 16, le=1 << 30, description="The total size of the spans that may wait, in bytes."
    )
    tracing_timeout_s: float = Field(
        5.0, gt=0, le=60, description="The longest time that the collector may take to answer, in seconds."
    )
    poll_interval_s: float = Field(
        1.0, gt=0, le=60, description="The interval at which the workers are polled, in seconds."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The lowest severity that is logged."
    )

    @field_validator("lora_adapters", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @property
    def hold_s(self) -> float:
        """The longest time that a request waits for workers of its model while there are none."""
        return self.queue_max_wait_s if self.hold_max_wait_s is None else self.hold_max_wait_s

    @property
    def objectives(self) -> Objectives:
        prefill_s = (self.prefill_a_s, self.prefill_b_s_per_token, self.prefill_c_s_per_token2)
        return Objectives(self.objective_ttft_s, self.objective_tpot_s, prefill_s)

    @property
    def deadlines(self) -> Objectives | None:
        """The objectives that give requests deadlines in the queues, or None for first come, first
        served.
        """
        return self.objectives if self.queue_order == "EarliestDeadline" and self.objective_ttft_s is not None else None

    @property
    def queue_patience_s(self) -> float:
        """The wait after which a request goes first at times. 0: first come, first served."""
        return 0.0 if self.deadlines is None else min(_PATIENCE_S, self.queue_max_wait_s / 3)

    @property
    def drain_s(self) -> float:
        """The time that requests have to finish after SIGTERM.

        What is held then may wait for workers for as long as at any other time, and run after that.
        """
        return _DRAIN_S + (self.hold_max_wait_s or 0.0) if self.drain_timeout_s is None else self.drain_timeout_s

    @property
    def grace_s(self) -> float:
        """The time after SIGTERM during which new requests are still taken.

        A Service sends some until all nodes have learned of the change.
        """
        if self.drain_grace_s is not None:
            return self.drain_grace_s
        return 5.0 if self.membership == "kubernetes" else 0.0

    def bearer(self) -> str:
        """Return the bearer token that workers accept (docs/protocol.md).

        Raises SettingsError if the key is missing or too short: there is no default.
        """
        try:
            return bearer_of(read_key(self.cluster_key_file))
        except ClusterKeyError as error:
            raise SettingsError(f"{RouterVariable.CLUSTER_KEY_FILE}: {error}") from None

    def api_keys(self) -> tuple[ApiKey, ...]:
        """Return the accepted API keys, or () if none are required.

        Raises SettingsError for a file that cannot be used.
        """
        if self.api_keys_file is None:
            return ()
        try:
            return parse(self.api_keys_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, KeyFileError) as error:
            # The error of a text that is no UTF-8 has its bytes.
            why = "is no UTF-8" if isinstance(error, UnicodeDecodeError) else error
            raise SettingsError(f"{RouterVariable.API_KEYS_FILE}: {why}") from None


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return the settings that the environment holds; an empty variable counts as not set.

    Raises SettingsError that names every wrong variable.
    """
    try:
        settings = Settings.model_validate(fields_in(environment))
    except ValidationError as error:
        raise refused(error.errors()) from None
    if settings.membership == "kubernetes" and not (settings.namespace and settings.deployment):
        raise SettingsError(
            f"{RouterVariable.NAMESPACE} and {RouterVariable.DEPLOYMENT}: are needed for membership kubernetes"
        )
    return settings
