"""The series of each DisaggDeployment: conditions, edits that nobody has seen, and pods."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from disagg_operator.controller.deployment_metrics import DeploymentMetrics, pod_state
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.resources import DISAGG_POOL, POD
from disagg_operator.vocabulary import Obj

OF = {"namespace": "ml", "disagg_deployment": "chat"}


def pod(name: str, status: dict[str, Any], **annotations: str) -> Obj:
    labels = {"disagg.dev/deployment": "chat", "disagg.dev/pool": "decode"}
    meta = {"namespace": "ml", "name": name, "labels": labels, "annotations": annotations}
    return {"metadata": meta, "status": {"conditions": [status]}}


READY = {"type": "Ready", "status": "True"}
STUCK = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}


@pytest.mark.parametrize(
    ("given", "state"),
    [
        (pod("a", READY), "ready"),
        (pod("a", {}), "starting"),
        (pod("a", STUCK), "unschedulable"),
        (pod("a", READY, **{"disagg.dev/drain-until": "1"}), "draining"),
    ],
)
def test_the_state_of_a_pod(given: Obj, state: str) -> None:
    assert pod_state(given) == state


def test_conditions_and_pods_are_those_of_now_and_an_edit_ages_until_it_is_seen() -> None:
    cache, now = Cache(), [100.0]
    cache.put(POD, pod("d0", READY))
    cache.put(POD, pod("d1", STUCK))
    spec = {"deployment": "chat", "role": "decode", "replicas": 3}
    cache.put(DISAGG_POOL, {"metadata": {"namespace": "ml", "name": "chat-decode"}, "spec": spec})
    ready = {"type": "Ready", "status": "False", "reason": "ImagePull"}
    status: dict[str, Any] = {"conditions": [ready], "observedGeneration": 1}
    resource: Obj = {"metadata": {"namespace": "ml", "name": "chat", "generation": 1}, "status": status}
    resources, registry = [resource], CollectorRegistry()
    registry.register(DeploymentMetrics(lambda: resources, cache, lambda: now[0]))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, OF | labels)

    of_ready = {"type": "Ready", "status": "False"}
    assert value("disagg_deployment_condition", **of_ready, reason="ImagePull") == 1
    counts = {s: value("disagg_pool_pods", pool="decode", state=s) for s in ("desired", "ready", "unschedulable")}
    assert counts == {"desired": 3, "ready": 1, "unschedulable": 1}
    assert value("disagg_pool_pods", pool="prefill", state="desired") == 0
    assert value("disagg_deployment_unobserved_seconds") == 0
    resource["metadata"]["generation"] = 2
    assert value("disagg_deployment_unobserved_seconds") == 0
    now[0] += 60
    assert value("disagg_deployment_unobserved_seconds") == 60
    resource["metadata"]["generation"] = 3  # more edits do not make it younger
    assert value("disagg_deployment_unobserved_seconds") == 60
    status["observedGeneration"] = 3
    assert value("disagg_deployment_unobserved_seconds") == 0
    resources.clear()
    assert value("disagg_deployment_condition", **of_ready, reason="ImagePull") is None
