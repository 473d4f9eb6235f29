"""What a podTemplate may set, and by which permission it may set more."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.operator.api.resources import good, of
from tests.operator.controller.template_edits import edit_that_we_refuse, good_edit

from disagg_operator.api.namespace_policy import NamespacePolicy, Permission
from disagg_operator.api.v1alpha1 import read
from disagg_operator.controller.permissions import owner_of
from disagg_operator.desired.template_rules import template_violations

NOTHING = NamespacePolicy()
EVERYTHING = NamespacePolicy(allow=tuple(Permission))
NETWORK = {"attachmentRef": {"name": "fast"}, "rdmaResource": {"name": "rdma/a"}}


def found(
    template: dict[str, Any], policy: NamespacePolicy = NOTHING, resource: dict[str, Any] | None = None
) -> dict[str, str]:
    """Return the reasons by path."""
    dd = read(resource or good())
    return {v.path: v.reason for v in template_violations(template, "t", owner_of(dd, "decode"), policy)}


def container(name: str = "main", **fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": name, **fields}]}}


def projected(**source: Any) -> dict[str, Any]:
    return {"spec": {"volumes": [{"name": "v", "projected": {"sources": [source]}}]}}


# What something else than the API server obeys, and the permission that it takes.
ANNOTATIONS = {
    "io.kubernetes.cri-o.Devices": "Privileged",
    "cpu-quota.crio.io": "Privileged",
    "io.katacontainers.config.hypervisor.path": "Privileged",
    "dev.gvisor.spec.mount.a.source": "Privileged",
    "devices.noderesource.dev/container.main": "Privileged",
    "run.oci.seccomp_bpf_data": "Privileged",
    "sidecar.istio.io/userVolume": "Privileged",
    "networking.gke.io/interfaces": "HostInterfaces",
    "danm.k8s.io/interfaces": "HostInterfaces",
    "cni.projectcalico.org/ipAddrs": "HostInterfaces",
    "k8s.v1.cni.cncf.io/network-status": "HostInterfaces",
    "iam.amazonaws.com/role": "ServiceAccounts",
}


def test_generated_edits_are_judged_as_meant() -> None:
    choice = random.Random(1)
    for _ in range(300):
        edit = good_edit(choice)
        assert found(edit.template) == {}, edit
    missing = ("secretName", "ClassName", "configMapRef")  # which is not judged here
    for _ in range(300):
        edit = edit_that_we_refuse(choice)
        assert edit.path is not None
        if not any(word in edit.path for word in missing):
            assert f"t.{edit.path}" in found(edit.template), edit


@pytest.mark.parametrize(
    ("template", "path", "permission"),
    [
        ({"metadata": {"finalizers": ["a"]}}, "t.metadata.finalizers", "UnlistedFields"),
        ({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "n"}}},
         "t.metadata.annotations[k8s.v1.cni.cncf.io/networks]", "HostInterfaces"),
        ({"metadata": {"annotations": {"devices.nri.io/x": "n"}}}, "t.metadata.annotations[devices.nri.io/x]",
         "Privileged"),
        *(({"metadata": {"annotations": {name: "x"}}}, f"t.metadata.annotations[{name}]", permission)
          for name, permission in ANNOTATIONS.items()),
        ({"spec": {"priorityClassName": "system-node-critical"}}, "t.spec.priorityClassName", "Privileged"),
        (projected(serviceAccountToken={"path": "t", "audience": "sts.amazonaws.com"}),
         "t.spec.volumes[v].projected.sources[0].serviceAccountToken", "ServiceAccounts"),
        (projected(podCertificate={"signerName": "s"}), "t.spec.volumes[v].projected.sources[0].podCertificate",
         "ServiceAccounts"),
        (projected(ofLaterVersion={}), "t.spec.volumes[v].projected.sources[0].ofLaterVersion", "UnlistedFields"),
        (container(ports=None), "t.spec.containers[main].ports", "OperatorFields"),
        (container(volumeMounts=None), "t.spec.containers[main].volumeMounts", "OperatorFields"),
        ({"spec": {"hostIPC": True}}, "t.spec.hostIPC", "HostNamespaces"),
        ({"spec": {"serviceAccount": "x"}}, "t.spec.serviceAccount", "ServiceAccounts"),
        ({"spec": {"automountServiceAccountToken": None}}, "t.spec.automountServiceAccountToken", "ServiceAccounts"),
        ({"spec": {"nodeName": "n"}}, "t.spec.nodeName", "UnlistedFields"),
        ({"spec": {"securityContext": None}}, "t.spec.securityContext", "Privileged"),
        ({"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}},
         "t.spec.securityContext.seccompProfile", "Privileged"),
        ({"spec": {"securityContext": {"runAsNonRoot": None}}}, "t.spec.securityContext.runAsNonRoot", "Privileged"),
        ({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}, "t.spec.volumes[v].hostPath", "HostPath"),
        ({"spec": {"volumes": [{"name": "cluster-key", "emptyDir": {}}]}}, "t.spec.volumes[cluster-key]",
         "OperatorFields"),
        (container(lifecycle={"preStop": {"httpGet": {"host": "10.0.0.1", "port": 1}}}),
         "t.spec.containers[main].lifecycle", "HostNamespaces"),
        (container("mesh", ports=[{"containerPort": 8000}]), "t.spec.containers[mesh].ports[8000].containerPort",
         "OperatorFields"),
        (container("mesh", volumeMounts=[{"name": "cluster-key", "mountPath": "/k"}]),
         "t.spec.containers[mesh].volumeMounts[/k]", "OperatorFields"),
        (container(volumeMounts=[{"name": "x", "mountPath": "/tmp"}]), "t.spec.containers[main].volumeMounts[/tmp]",
         "OperatorFields"),
        (container(securityContext={"procMount": "Unmasked"}), "t.spec.containers[main].securityContext.procMount",
         "Privileged"),
        (container(securityContext={"capabilities": {"drop": None}}),
         "t.spec.containers[main].securityContext.capabilities", "Privileged"),
        (container(securityContext={"allowPrivilegeEscalation": True}),
         "t.spec.containers[main].securityContext.allowPrivilegeEscalation", "Privileged"),
        (container("mesh", ofLaterVersion=1), "t.spec.containers[mesh].ofLaterVersion", "UnlistedFields"),
        (container(args=["x"]), "t.spec.containers[main].args", "OperatorFields"),
    ],
)  # fmt: skip
def test_a_field_needs_its_permission(template: dict[str, Any], path: str, permission: str) -> None:
    assert path in found(template)
    assert found(template, NamespacePolicy(allow=(Permission(permission),))) == {}
    others = tuple(p for p in Permission if p != permission)
    assert path in found(template, NamespacePolicy(allow=others))


def test_some_things_can_not_be_granted() -> None:
    networked = good(kvTransfer={"network": NETWORK})
    annotation = {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": None}}}
    assert list(found(annotation, EVERYTHING, networked)) == ["t.metadata.annotations[k8s.v1.cni.cncf.io/networks]"]
    assert list(found({"metadata": {"labels": {"disagg.dev/x": "y"}}}, EVERYTHING)) == [
        "t.metadata.labels[disagg.dev/x]"
    ]
    for seconds in (299, None):  # null leaves 30 s
        grace = {"spec": {"terminationGracePeriodSeconds": seconds}}
        assert list(found(grace, EVERYTHING)) == ["t.spec.terminationGracePeriodSeconds"]
    assert found({"spec": {"terminationGracePeriodSeconds": 300}}) == {}


def test_devices_that_other_fields_ask_for_are_not_asked_for_again() -> None:
    resource = good(decode={"accelerator": {"count": 1}}, kvTransfer={"network": NETWORK})
    limits = {"nvidia.com/gpu": "8", "rdma/a": "8", "cpu": "1"}
    paths = found(container(resources={"limits": limits}), resource=resource)
    assert sorted(paths) == [
        "t.spec.containers[main].resources.limits[nvidia.com/gpu]",
        "t.spec.containers[main].resources.limits[rdma/a]",
    ]


def test_devices_that_other_fields_ask_for_are_not_removed() -> None:
    resource = good(
        decode={"accelerator": {"count": 1}, "deviceClaim": {"templateName": "t", "accelerators": False}},
        kvTransfer={"network": NETWORK},
    )
    for resources, places in (
        (None, [""]),
        ({"limits": None}, [".limits"]),
        ({"requests": None, "claims": None}, [".claims", ".requests"]),
        ({"limits": {"rdma/a": "1"}}, [".limits[rdma/a]"]),
        ({"limits": {"cpu": "1"}}, []),
    ):
        paths = found(container(resources=resources), resource=resource)
        assert sorted(paths) == [f"t.spec.containers[main].resources{place}" for place in places]
    assert found(container(resources=None)) == {}


def test_only_listed_annotations_are_set() -> None:
    policy = NamespacePolicy(annotations=("example.com/*",))
    template = {"metadata": {"annotations": {"example.com/a": "b", "vault.hashicorp.com/agent-inject": "true"}}}
    assert found(template) == {}
    assert found(template, policy) == {"t.metadata.annotations[vault.hashicorp.com/agent-inject]": "NotPermitted"}


def test_the_adapter_and_the_engine_belong_to_the_operator_with_all_their_variables() -> None:
    vllm = of("vllm")
    assert found(container("adapter", env=[{"name": "DISAGG_ENGINE", "value": "x"}]), resource=vllm)
    assert found(container("adapter", env=[{"name": "DISAGG_LOG_LEVEL", "value": "DEBUG"}]), resource=vllm) == {}
    assert found(container(env=[{"name": "HOME", "value": "/"}]), resource=vllm)
    assert found(container(env=[{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]), resource=vllm) == {}
    hook = container(lifecycle={"preStop": {"exec": {"command": ["true"]}}})
    assert list(found(hook, resource=vllm)) == ["t.spec.containers[main].lifecycle"]
    assert found(hook) == {}


def test_only_listed_images_run() -> None:
    policy = NamespacePolicy(images=("good/*",))
    volume = {"name": "v", "image": {"reference": "bad/i"}}
    template = {
        "spec": {"containers": [{"name": "a", "image": "good/a"}, {"name": "b", "image": "bad/b"}], "volumes": [volume]}
    }
    assert found(template, policy) == {
        "t.spec.volumes[v].image.reference": "NotPermitted",
        "t.spec.containers[b].image": "NotPermitted",
    }


def test_what_changes_nothing_is_allowed() -> None:
    off = {"hostNetwork": False, "serviceAccountName": "chat-worker", "automountServiceAccountToken": False}
    assert found({"spec": {**off, "nodeName": None}}) == {}
    assert found(container(ports=[{"name": "debug", "containerPort": 5678}])) == {}
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "v", "mountPath": "/v"}]
    assert found(container("mesh", volumeMounts=mounts)) == {}


@pytest.mark.parametrize(
    "template",
    [
        {},
        {"metadata": {"labels": "x"}},
        {
            "spec": {
                "containers": [{"name": "main", "ports": "x", "env": [1], "resources": "x", "volumeMounts": [None]}]
            }
        },
        {"spec": {"volumes": [{"name": "v", "image": "x"}], "securityContext": "x"}},
        {"spec": {"terminationGracePeriodSeconds": "x", "containers": [{"name": "main", "lifecycle": ["x"]}]}},
    ],
)
def test_what_has_another_shape_is_left_to_the_api_server(template: dict[str, Any]) -> None:
    found(template)
