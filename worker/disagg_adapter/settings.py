"""The settings of an adapter, read once from DISAGG_* environment variables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from disagg_protocol.keep_limits import KEEP_BYTES, KEEP_S, UNREAD_S, UNREAD_STREAMS, KeepLimits
from disagg_wire.cluster_key import ClusterKeyError, read_key
from disagg_wire.engines import ADAPTED
from disagg_wire.environment import AdapterVariable, SettingsError, fields_in, refused
from disagg_wire.ports import BOOTSTRAP_PORT, ENGINE_PORT, KV_PORT, WORKER_PORT
from disagg_wire.roles import Role


class Settings(BaseModel):
    """The settings of an adapter. The field `x_y` is read from the variable DISAGG_X_Y."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role = Field(description="The role of the engine: prefill, decode or both.")
    engine: str = Field(description="The engine beside the adapter: vllm, sglang or lmdeploy.")
    engine_host: str = Field("127.0.0.1", description="The address on which the engine listens.")
    engine_port: int = Field(ENGINE_PORT, ge=1, le=65535, description="The TCP port of the engine's HTTP server.")
    engine_key_file: Path | None = Field(
        None, description="The file with the API key that the engine asks for. Unset: it asks for none."
    )
    model_uri: str = Field(min_length=1, description="The model, as in the spec; part of its identity.")
    model_name: str = Field(min_length=1, description="The name under which clients ask for the model.")
    model_files: Path = Field(
        description="The folder with the model's configuration and tokenizer, or a cache of the Hugging Face hub in "
        "which the engine puts the model."
    )
    host: str = Field("127.0.0.1", description="The address on which the HTTP server listens.")
    port: int = Field(WORKER_PORT, ge=0, le=65535, description="The TCP port of the HTTP server; 0 takes a free one.")
    kv_interface: str = Field(
        "",
        description="The network interface that the engine uses for KV. Hand-overs are received on its address. "
        "Empty: kv_host decides.",
    )
    kv_host: str = Field("", description="The address for hand-overs if kv_interface is empty. Empty: host.")
    kv_port: int = Field(
        KV_PORT, ge=0, le=65535, description="The TCP port on which hand-overs are received; 0 takes a free one."
    )
    bootstrap_port: int = Field(
        BOOTSTRAP_PORT, ge=1, le=65535, description="The TCP port of SGLang's bootstrap server."
    )
    pod_name: str = Field("", description="The name of the pod, as it is reported to routers.")
    pod_uid: str = Field("", description="The UID of the pod, the first part of the incarnation. Empty: a random one.")
    revision: str = Field("", description="The revision of the deployment, as it is reported to routers.")
    cluster_key_file: Path = Field(description="The file with the cluster key, at least 32 bytes.")
    dtype: str = Field("auto", description="The dtype of the weights, part of the compatibility hash.")
    tensor_ratio: str = Field(
        "1:1",
        pattern=r"^[0-9]+:[0-9]+$",
        description="The tensor parallel sizes of prefill and decode, part of the compatibility hash.",
    )
    transport: Literal["auto", "rdma", "tcp"] = Field("auto", description="The transport that the spec asks for.")
    fabric_report: Path | None = Field(
        None,
        description="The file in which the engine's container says which RDMA devices it finds. Unset: none is asked "
        "for.",
    )
    lease_s: float = Field(
        60.0, gt=0, le=3600, description="The seconds for which prefill's engine keeps KV that nobody has read."
    )
    experimental: bool = Field(
        False, description="Whether a hand-over may be used that the engine does not make safe (LMDeploy)."
    )
    lora_adapters: list[str] = Field([], description="The names of the LoRA adapters, as a JSON list.")
    max_running: int = Field(64, ge=1, le=4096, description="The most sequences that the engine gets at a time.")
    max_waiting: int = Field(256, ge=1, le=65536, description="The most requests beyond these; others are refused.")
    growth_reserve_tokens: int = Field(
        128, ge=1, le=1 << 20, description="The output tokens for which a ticket promises room."
    )
    ticket_lifetime_s: float = Field(
        30.0, gt=0, le=3600, description="The seconds after which an unused ticket expires."
    )
    poll_interval_s: float = Field(0.5, gt=0, le=60, description="The seconds between two looks at the engine.")
    probe_after_s: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="The seconds without any progress of the engine, while it has work, after which one token is "
        "asked for.",
    )
    probe_timeout_s: float = Field(
        10.0, gt=0, le=3600, description="The seconds that this token may take; then the engine counts as hung."
    )
    start_timeout_s: float = Field(
        7200.0, gt=0, le=86400, description="The seconds that the engine may take until it serves."
    )
    drain_timeout_s: float = Field(
        300.0, ge=0, le=86400, description="The seconds for running requests to finish after SIGTERM."
    )
    resume_keep_s: float = KEEP_S
    resume_keep_bytes: int = KEEP_BYTES
    resume_unread_s: float = UNREAD_S
    resume_unread_streams: int = UNREAD_STREAMS
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least severity of the messages that are logged."
    )

    @field_validator("engine")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ADAPTED:
            raise ValueError(f"must be one of {', '.join(ADAPTED)}")
        return value

    @field_validator("lora_adapters", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @property
    def address(self) -> str:
        """The base URL of the engine."""
        host = f"[{self.engine_host}]" if ":" in self.engine_host else self.engine_host  # of IPv6
        return f"http://{host}:{self.engine_port}"

    @property
    def keep_limits(self) -> KeepLimits:
        """What streams that can be resumed may cost."""
        return KeepLimits(self.resume_keep_s, self.resume_keep_bytes, self.resume_unread_s, self.resume_unread_streams)

    def cluster_key(self) -> bytes:
        """Return the bytes of the cluster key. Raises SettingsError: there is no default."""
        try:
            return read_key(self.cluster_key_file)
        except ClusterKeyError as error:
            raise SettingsError(f"{AdapterVariable.CLUSTER_KEY_FILE}: {error}") from None

    def engine_key(self) -> str | None:
        """Return the engine's API key, None if it asks for none. Raises SettingsError."""
        if self.engine_key_file is None:
            return None
        try:
            return read_key(self.engine_key_file).decode()
        except (ClusterKeyError, UnicodeDecodeError) as error:
            raise SettingsError(f"{AdapterVariable.ENGINE_KEY_FILE}: {error}") from None


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return the settings in an environment, in which an empty variable counts as not set.

    Raises SettingsError, which names every wrong variable.
    """
    try:
        return Settings.model_validate(fields_in(environment))
    except ValidationError as error:
        raise refused(error.errors()) from None
