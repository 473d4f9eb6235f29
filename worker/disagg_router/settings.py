"""Everything that can be set about a router process, read from DISAGG_* environment variables,
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from disagg_router.objectives import Objectives
from disagg_wire.cluster_key import ClusterKeyError, bearer_of, read_key
from disagg_wire.environment import RouterVariable, fields_in, variable_of

# Who has waited so long goes first at times (order.py); or a third of the longest wait, if that is
# less.
_PATIENCE_S = 20.0


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it."""


class Settings(BaseModel):
    """Field `x_y` is the variable DISAGG_X_Y."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    model_name: str = Field(min_length=1)
    cluster_key_file: Path
    membership: str = Field(pattern=r"^(kubernetes|file:///.+)$")
    namespace: str = ""
    deployment: str = ""
    kube_api: str = "https://kubernetes.default.svc"
    queue_max_depth: int = Field(1024, ge=0, le=1_000_000)
    queue_max_wait_s: float = Field(60.0, ge=0, le=3600)
    queue_order: Literal["EarliestDeadline", "FirstComeFirstServed"] = "EarliestDeadline"
    request_timeout_s: float = Field(600.0, gt=0, le=86400)
    max_attempts: int = Field(4, ge=1, le=32)
    api_keys_file: Path | None = None
    max_body_bytes: int = Field(8 << 20, ge=1024, le=1 << 30)
    drain_timeout_s: float = Field(110.0, ge=0, le=86400)
    drain_grace_s: float | None = Field(None, ge=0, le=600)
    first_token_timeout_s: float = Field(120.0, gt=0, le=86400)
    stall_timeout_s: float = Field(60.0, gt=0, le=86400)
    objective_ttft_s: float | None = Field(None, gt=0, le=3600)
    objective_tpot_s: float | None = Field(None, gt=0, le=3600)
    # What a prompt of n uncached tokens takes alone: a + b*n + c*n^2 (seconds); the first objective
    # is never below 5 times that.
    prefill_a_s: float = Field(0.0, ge=0, le=3600)
    prefill_b_s_per_token: float = Field(0.0, ge=0, le=60)
    prefill_c_s_per_token2: float = Field(0.0, ge=0, le=1)
    poll_interval_s: float = Field(1.0, gt=0, le=60)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def objectives(self) -> Objectives:
        prefill_s = (self.prefill_a_s, self.prefill_b_s_per_token, self.prefill_c_s_per_token2)
        return Objectives(self.objective_ttft_s, self.objective_tpot_s, prefill_s)

    @property
    def deadlines(self) -> Objectives | None:
        """What gives each request its deadline in the queues. None: first come, first served."""
        return self.objectives if self.queue_order == "EarliestDeadline" and self.objective_ttft_s is not None else None

    @property
    def queue_patience_s(self) -> float:
        """Who has waited so long goes first at times. 0: first come, first served."""
        return 0.0 if self.deadlines is None else min(_PATIENCE_S, self.queue_max_wait_s / 3)

    @property
    def grace_s(self) -> float:
        """How long new requests are still taken after SIGTERM: a Service sends some until all nodes
        have heard of it.
        """
        if self.drain_grace_s is not None:
            return self.drain_grace_s
        return 5.0 if self.membership == "kubernetes" else 0.0

    def bearer(self) -> str:
        """What workers accept (docs/protocol.md).

        Raises SettingsError when the key is missing or too short: there is no default.
        """
        try:
            return bearer_of(read_key(self.cluster_key_file))
        except ClusterKeyError as error:
            raise SettingsError(f"{RouterVariable.CLUSTER_KEY_FILE}: {error}") from None

    def api_keys(self) -> tuple[str, ...]:
        """The accepted API keys, () when none are asked for.

        Raises SettingsError for a file that holds none.
        """
        if self.api_keys_file is None:
            return ()
        try:
            lines = self.api_keys_file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{RouterVariable.API_KEYS_FILE}: {error}") from None
        if not lines:
            raise SettingsError(f"{RouterVariable.API_KEYS_FILE}: holds no key")
        return tuple(lines)


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises SettingsError that names every wrong variable. An empty variable counts as not set."""
    try:
        settings = Settings.model_validate(fields_in(environment))
    except ValidationError as error:
        raise SettingsError("; ".join(f"{variable_of(str(e['loc'][0]))}: {e['msg']}" for e in error.errors())) from None
    if settings.membership == "kubernetes" and not (settings.namespace and settings.deployment):
        raise SettingsError(
            f"{RouterVariable.NAMESPACE} and {RouterVariable.DEPLOYMENT}: are needed for membership kubernetes"
        )
    return settings
