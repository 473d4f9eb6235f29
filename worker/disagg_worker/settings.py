"""Everything that can be set about a worker process, read from DISAGG_* environment variables,
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from disagg_wire.cluster_key import ClusterKeyError, read_key
from disagg_wire.environment import WorkerVariable, fields_in, variable_of
from disagg_worker.values.choices import Role


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it."""


class Settings(BaseModel):
    """Field `x_y` is the variable DISAGG_X_Y; engine.config.EngineConfig says what the engine's do."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role
    model_uri: str = Field(min_length=1)
    model_name: str = Field(min_length=1)
    model_mount: Path = Path("/mnt/model")
    cache_dir: Path = Path("/cache")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    kv_interface: str = ""
    kv_host: str = ""
    kv_port: int = Field(9000, ge=0, le=65535)
    pod_name: str = ""
    pod_uid: str = ""
    revision: str = ""
    cluster_key_file: Path
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "int8", "int4", "fp8"] = "none"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    block_size_tokens: int = Field(16, ge=1, le=1024)
    kv_cache_bytes: int | None = Field(None, ge=1 << 20)
    max_model_len: int | None = Field(None, ge=2)
    max_running: int = Field(64, ge=1, le=4096)
    max_waiting: int = Field(256, ge=1, le=65536)
    max_batch_tokens: int = Field(2048, ge=16)
    prefill_wait_s: float = Field(0.05, ge=0, le=10)
    prefill_utilisation: float = Field(0.85, gt=0, le=1)
    ticket_lifetime_s: float = Field(30.0, gt=0, le=3600)
    transfer_idle_s: float = Field(5.0, gt=0, le=3600)
    drain_timeout_s: float = Field(300.0, ge=0, le=86400)
    threads: int = Field(1, ge=1, le=1024)
    device: Literal["auto", "cpu", "cuda", "plain"] = "auto"
    prefix_cache: bool = True
    eviction: Literal["lru", "fifo"] = "lru"
    host_cache_bytes: int = Field(0, ge=0)
    growth_reserve_tokens: int = Field(128, ge=1, le=1 << 20)
    saturating_tokens: int = Field(256, ge=1, le=1 << 20)
    decode_step_target_s: float | None = Field(None, gt=0, le=3600)
    tensor_parallel: int = Field(1, ge=1, le=64)
    rank_timeout_s: float = Field(60.0, gt=0, le=3600)
    rank_start_timeout_s: float = Field(600.0, gt=0, le=86400)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def cluster_key(self) -> bytes:
        """The shared key's bytes.

        Raises SettingsError when the file is missing, unreadable or too short: there is no default.
        """
        try:
            return read_key(self.cluster_key_file)
        except ClusterKeyError as error:
            raise SettingsError(f"{WorkerVariable.CLUSTER_KEY_FILE}: {error}") from None


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises SettingsError that names every wrong variable. An empty variable counts as not set."""
    try:
        return Settings.model_validate(fields_in(environment))
    except ValidationError as error:
        lines = [f"{variable_of(str(e['loc'][0]))}: {e['msg']}" for e in error.errors()]
        raise SettingsError("; ".join(lines)) from None
