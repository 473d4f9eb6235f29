"""DisaggScalers as somebody writes them."""

from __future__ import annotations

from typing import Any

from disagg_operator.vocabulary import Obj


def scaler_object(name: str = "llama", **spec: Any) -> Obj:
    """Return a DisaggScaler of two Deployments, whose spec can be changed in parts."""
    base: Obj = {
        "metrics": {"engine": "vllm"},
        "prefill": {"scaleTargetRef": {"name": "p"}, "maxReplicas": 8},
        "decode": {"scaleTargetRef": {"name": "d"}, "maxReplicas": 8},
    }
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggScaler",
        "metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": "2026-12-01T00:00:00Z"},
        "spec": base | spec,
    }
