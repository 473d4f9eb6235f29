"""The conditions of resources are a series."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from disagg_operator.controller.condition_metrics import ConditionMetrics
from disagg_operator.vocabulary import Obj


def test_each_condition_is_a_sample_that_follows_it() -> None:
    ready = {"type": "Ready", "status": "False", "reason": "ImagePull", "message": "never in a label"}
    resource: Obj = {"metadata": {"namespace": "ml", "name": "chat"}, "status": {"conditions": [ready]}}
    resources = [resource, {"metadata": {"namespace": "ml", "name": "new"}}]
    registry = CollectorRegistry()
    registry.register(ConditionMetrics(lambda: resources))

    def samples() -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]

    labels = 'name="chat",namespace="ml",reason="{}",status="{}",type="Ready"'
    assert samples() == ["disagg_condition{" + labels.format("ImagePull", "False") + "} 1.0"]
    ready |= {"status": "True", "reason": "Ready"}
    assert samples() == ["disagg_condition{" + labels.format("Ready", "True") + "} 1.0"]
    resources.clear()
    assert samples() == []
