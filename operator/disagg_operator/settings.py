"""PURE: The operator's settings, read once at start from environment variables DISAGG_<NAME>."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Json, StringConstraints, ValidationError, model_validator

from disagg_operator.api.namespace_policy import Policy
from disagg_wire.environment import OperatorVariable, variable_of
from disagg_wire.ports import OPERATOR_HEALTH_PORT

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Image = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\s]+$")]

_NAMESPACE = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


class BadSettings(Exception):
    """Raised when a variable is missing or invalid; the message names the variable."""


class OperatorSettings(BaseModel):
    """The settings of an operator process, including every timeout, limit and retry budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker_image: Image = Field(description="Image of the worker pods whose resource does not specify its own.")
    router_image: Image = Field(description="Image of the router pods whose resource does not specify its own.")
    adapter_image: Image = Field(
        "disagg.dev/adapter:dev",
        description="Image of the adapters, which stand in front of engines of other projects.",
    )
    scrapers: Json[list[dict[str, object]]] | None = Field(
        None,
        description="Peers that may read the metrics of workers, as a JSON list in the form of a NetworkPolicy's "
        "`from`. If empty, pods with the label app.kubernetes.io/name=prometheus in any namespace.",
    )
    web_ports: Json[list[Port]] | None = Field(
        None,
        description="TCP ports by which workers of hf:// models reach the web or its proxy, as a JSON list. If empty, "
        "443 and 80.",
    )
    runtime_updates: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Number of DisaggDeployments whose pods are replaced at the same time to bring them to the images "
        "and the renderer of this release. If 0, this happens only where the annotation disagg.dev/update-runtime "
        "asks for it.",
    )
    watch_namespace: str = Field(
        "",
        max_length=16_384,
        pattern=rf"^({_NAMESPACE}(,{_NAMESPACE})*)?$",
        description="The namespaces to watch, separated by commas. If empty, all namespaces are watched.",
    )
    lease_namespace: str = Field(
        "",
        max_length=63,
        description="Namespace of the Lease by which one of several operators is chosen to lead. If empty, there is no "
        "Lease, and no other operator may run in the cluster.",
    )
    lease_name: str = Field("disagg-operator", min_length=1, max_length=253, description="Name of that Lease.")
    lease_duration_s: Seconds = Field(
        15.0, ge=1, description="Time in seconds after which another operator takes a Lease that is not renewed."
    )
    lease_renew_deadline_s: Seconds = Field(
        10.0,
        description="Time in seconds after its last renewal of the Lease from which an operator writes nothing more.",
    )
    lease_retry_s: Seconds = Field(
        2.0, description="Time in seconds between two renewals of the Lease, and between two attempts to take it."
    )
    pod_name: str = Field(
        "", max_length=253, description="Name of the operator's pod, which the Lease shows. If empty, the host's name."
    )
    health_host: str = Field(
        "0.0.0.0",  # noqa: S104 - the kubelet's probes and Prometheus come from outside the pod
        description="IP address on which health checks, metrics and decision records are served.",
    )
    health_port: int = Field(
        OPERATOR_HEALTH_PORT,
        ge=0,
        le=65_535,
        description="TCP port on which health checks, metrics and decision records are served. If 0, the kernel "
        "chooses a free port.",
    )
    workers: int = Field(
        4, ge=1, le=64, description="Number of DisaggDeployments that are reconciled at the same time."
    )
    reconcile_timeout_s: Seconds = Field(
        60.0, description="Time in seconds after which one reconcile is cancelled and tried again later."
    )
    resync_interval_s: Seconds = Field(
        300.0, description="Time in seconds between two full lists, each of which reconciles every DisaggDeployment."
    )
    watch_silence_s: Seconds = Field(
        70.0,
        description="Time in seconds after which a watch that delivers nothing is opened anew. The API server sends "
        "something every minute.",
    )
    debounce_s: float = Field(
        0.2,
        ge=0,
        le=60,
        description="Time in seconds by which a reconcile is delayed after a change of a pod or Deployment, so that a "
        "burst of changes leads to a single reconcile.",
    )
    scrape_interval_s: Seconds = Field(
        5.0,
        description="Time in seconds between two autoscaling ticks; each scrapes the metrics of routers and workers.",
    )
    scaler_only: bool = Field(
        False,
        description="Whether only DisaggScalers are carried out. The operator then reads and writes no other kind of "
        "disagg, and needs no right to.",
    )
    scaler_interval_s: Seconds = Field(
        15.0, description="Time in seconds between two looks at every DisaggScaler, its targets and their metrics."
    )
    record_dir: str = Field(
        "",
        description="Directory to which the autoscaling decisions are recorded. If empty, a temporary directory is "
        "used, which is removed when the process stops.",
    )
    scrape_timeout_s: Seconds = Field(2.0, description="Timeout in seconds of one request to a router or a worker.")
    scrape_concurrency: int = Field(
        16, ge=1, le=256, description="Maximum number of concurrent requests to routers and workers."
    )
    prometheus_timeout_s: Seconds = Field(4.0, description="Timeout in seconds of one query to a Prometheus server.")
    kube_timeout_s: Seconds = Field(
        15.0, description="Timeout in seconds of one call to the API server, including its retries."
    )
    heartbeat_timeout_s: Seconds = Field(
        900.0,
        description="Time in seconds without a completed autoscaling tick after which the liveness probe fails. "
        "Without a full list, it fails after this time plus the resync interval.",
    )
    shutdown_timeout_s: Seconds = Field(
        20.0,
        description="Time in seconds that running reconciles may take to finish when the process stops. Saving the "
        "autoscaling state may then take the same time again.",
    )
    policy: Json[Policy] = Field(
        Policy(),
        description="What the authors of DisaggDeployments may do, by namespace, as JSON in the form of the chart's "
        "value `policy`. If empty, no permission is granted.",
    )
    log_level: str = Field(
        "INFO",
        pattern=r"^(DEBUG|INFO|WARNING|ERROR)$",
        description="Minimum severity of the messages that are logged: DEBUG, INFO, WARNING or ERROR.",
    )

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces to watch; none if all of them are watched."""
        return tuple(dict.fromkeys(self.watch_namespace.split(","))) if self.watch_namespace else ()

    @model_validator(mode="after")
    def _in_order(self) -> OperatorSettings:
        if not self.lease_duration_s > self.lease_renew_deadline_s > self.lease_retry_s:
            longest, middle, least = (
                OperatorVariable.LEASE_DURATION_S,
                OperatorVariable.LEASE_RENEW_DEADLINE_S,
                OperatorVariable.LEASE_RETRY_S,
            )
            raise ValueError(f"{longest} must be above {middle}, and that above {least}")
        return self


def load(environ: Mapping[str, str]) -> OperatorSettings:
    """Read the settings from the environment. Raises BadSettings, which names the variable."""
    names = {variable_of(field): field for field in OperatorSettings.model_fields}
    values = {field: environ[name] for name, field in names.items() if name in environ}
    try:
        return OperatorSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = f"{variable_of(str(first['loc'][0]))}: " if first["loc"] else ""
        raise BadSettings(f"{name}{first['msg']}") from None
