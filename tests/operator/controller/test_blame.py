"""The field of a resource that is to blame for the API server's words about a rendered object."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.controller.blame import field_to_blame

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"a": "b"}},
    "spec": {
        "nodeSelector": {"a": "b"},
        "containers": [
            {"name": "main", "env": [{"name": "A", "value": "1"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"name": "mesh", "ports": [{"containerPort": 1}]},
        ],
    },
}
RENDERED = {
    "metadata": {"labels": {}},
    "spec": {
        "containers": [
            {"name": "main", "env": [{"name": "A"}, {"name": "B"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"name": "mesh", "ports": [{"containerPort": 1}]},
        ]
    },
}
BASE, MAIN = "spec.decode.podTemplate.spec", "spec.template.spec.containers[0]"


def workload(role: str = "decode") -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": role} | ({"disagg.dev/pool": role} if role != "router" else {})
    meta = {"name": f"chat-{role}", "labels": labels}
    return {"kind": "Deployment", "metadata": meta, "spec": {"template": RENDERED}}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("", "spec.decode.podTemplate"),
        ("spec.template.labels", "spec.decode.podTemplate.metadata.labels"),
        ("spec.template.spec.nodeSelector[a]", f"{BASE}.nodeSelector.a"),
        (f"{MAIN}.env[0].value", f"{BASE}.containers[main].env[A].value"),
        ('spec.template.spec.containers[name="main"].env[name="A"].value', f"{BASE}.containers[main].env[A].value"),
        (f"{MAIN}.volumeMounts[0].name", f"{BASE}.containers[main].volumeMounts[/v].name"),
        (f"{MAIN}.env[1].value", "spec.engine.env"),
        (f"{MAIN}.image", "spec.engine.image"),
        (f"{MAIN}.resources.limits[a.b/c]", "spec.decode.resources.limits[a.b/c]"),
        (f"{MAIN}.command", "spec.engine"),
        ("spec.template.spec.containers[1].image", f"{BASE}.containers[mesh].image"),
        (
            'spec.template.spec.containers[name="mesh"].ports[containerPort=1,protocol="TCP"].name',
            f"{BASE}.containers[mesh]",
        ),
        ("spec.template.spec.containers[7].image", "spec.decode"),
        ("spec.template.spec.volumes[0].name", "spec.decode"),
        ("spec.replicas", "spec.decode.podTemplate"),
    ],
)
def test_a_part_of_the_pods_is_that_of_the_pod_template_or_the_field_that_it_is_made_from(
    path: str, field: str
) -> None:
    assert field_to_blame({"decode": {"podTemplate": TEMPLATE}}, workload(), path).startswith(field)


@pytest.mark.parametrize(
    ("role", "path", "field"),
    [
        ("decode", "", "spec.decode"),
        ("decode", f"{MAIN}.resources.limits", "spec.decode.resources.limits"),
        ("decode", f"{MAIN}.startupProbe", "spec.decode"),
        ("router", f"{MAIN}.image", "spec.router.image"),
        ("router", f"{MAIN}.resources.limits", "spec.router.resources"),
        ("router", f"{MAIN}.env[0]", "spec.router"),
        ("router", "spec.template.spec.volumes[0]", "spec.router"),
    ],
)
def test_without_a_pod_template_it_is_the_field_alone(role: str, path: str, field: str) -> None:
    assert field_to_blame({role: {}}, workload(role), path) == field


@pytest.mark.parametrize(
    ("kind", "labels", "field"),
    [
        ("Service", {"app.kubernetes.io/component": "router"}, "spec.router.service"),
        ("Service", {"disagg.dev/pool": "prefill"}, "spec.prefill"),
        ("DisaggPool", {"disagg.dev/pool": "decode"}, "spec.decode"),
        ("PodDisruptionBudget", {"app.kubernetes.io/component": "router"}, "spec.router"),
        ("NetworkAttachmentDefinition", {}, "spec.kvTransfer.network.attachment"),
        ("NetworkPolicy", {"app.kubernetes.io/component": "router"}, "spec.security.networkPolicy"),
        ("ConfigMap", {"app.kubernetes.io/component": "shared"}, "spec"),
        ("ServiceAccount", {"app.kubernetes.io/component": "worker"}, "spec"),
    ],
)
def test_other_objects_are_made_from_one_field(kind: str, labels: dict[str, str], field: str) -> None:
    found = {"kind": kind, "metadata": {"name": "x", "labels": labels}}
    assert field_to_blame({}, found, "spec.ports[0]") == field
