"""PURE: The operator's settings: environment variables DISAGG_<NAME>, read once at start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from disagg_wire.environment import variable_of

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Image = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\s]+$")]


class BadSettings(Exception):
    """A variable is missing or wrong; the message names it."""


class OperatorSettings(BaseModel):
    """Every wait, bound and budget of the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker_image: Image
    router_image: Image
    watch_namespace: Annotated[str, Field(max_length=63)] = ""  # empty: all namespaces
    health_host: str = "0.0.0.0"  # noqa: S104 - the kubelet's probes and Prometheus come from outside the pod
    health_port: Annotated[int, Field(ge=0, le=65_535)] = 8081
    workers: Annotated[int, Field(ge=1, le=64)] = 4
    reconcile_timeout_s: Seconds = 60.0
    resync_interval_s: Seconds = 300.0
    debounce_s: Annotated[float, Field(ge=0, le=60)] = 0.2
    scrape_interval_s: Seconds = 5.0
    record_dir: str = ""  # empty: a folder of its own, gone with the process
    scrape_timeout_s: Seconds = 2.0
    scrape_concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    prometheus_timeout_s: Seconds = 4.0
    kube_timeout_s: Seconds = 15.0
    heartbeat_timeout_s: Seconds = 900.0
    shutdown_timeout_s: Seconds = 20.0
    log_level: Annotated[str, Field(pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"


def load(environ: Mapping[str, str]) -> OperatorSettings:
    """Settings from the environment. Raises BadSettings naming the variable."""
    names = {variable_of(field): field for field in OperatorSettings.model_fields}
    values = {field: environ[name] for name, field in names.items() if name in environ}
    try:
        return OperatorSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadSettings(f"{variable_of(str(first['loc'][0]))}: {first['msg']}") from None
