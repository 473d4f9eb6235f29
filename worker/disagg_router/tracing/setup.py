"""Makes the tracer of a router, and loads what that needs only where traces are wanted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from disagg_router.settings import Settings
from disagg_router.tracing.spans import Value
from disagg_router.tracing.tracing_metrics import TracingMetrics
from disagg_wire.version import VERSION

if TYPE_CHECKING:
    from disagg_router.tracing.kept_traces import Tracer


def tracer_of(settings: Settings, metrics: TracingMetrics, incarnation: str) -> Tracer | None:
    """Return the tracer that the settings ask for, or None."""
    if settings.tracing_endpoint is None:
        return None
    from disagg_router.tracing.kept_traces import Tracer

    resource: dict[str, Value] = {
        "service.name": "disagg-router",
        "service.version": VERSION,
        "service.instance.id": incarnation,
        "disagg.model": settings.model_name,
    }
    if settings.deployment:
        resource |= {
            "service.namespace": settings.namespace,
            "disagg.deployment": settings.deployment,
            "k8s.namespace.name": settings.namespace,
            "k8s.pod.name": os.environ.get("HOSTNAME", ""),
        }
    return Tracer(settings, metrics, resource)
