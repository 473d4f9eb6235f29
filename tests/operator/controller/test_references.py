"""The objects that a resource refers to."""

from __future__ import annotations

from typing import Any

from tests.operator.api.resources import good, of, patched

from disagg_operator.api import parse
from disagg_operator.controller.references import NamedObject, Sight, missing, references_of, sight_of


def found(resource: dict[str, Any]) -> dict[str, tuple[str, str, str, str | None]]:
    """Return (kind, namespace, name, key) of each reference by its path."""
    return {
        ref.path: (ref.target.resource.kind, ref.target.namespace, ref.target.name, ref.key)
        for ref in references_of(parse(resource))
    }


def test_the_fields_of_the_spec_name_secrets_claims_and_networks() -> None:
    assert found(good()) == {}
    resource = of(
        "vllm",
        model={"uri": "pvc://weights/a", "adapters": [{"name": "law", "uri": "pvc://lora"}]},
        router={"apiKeysSecretRef": {"name": "keys", "key": "all"}},
        kvTransfer={"network": {"attachmentRef": {"name": "fast", "namespace": "nets"}}},
        observability={
            "tracing": {"endpoint": "https://c", "headersSecretRef": {"name": "otlp"}, "caSecretRef": {"name": "ca"}}
        },
    )
    assert found(resource) == {
        "spec.observability.tracing.headersSecretRef": ("Secret", "default", "otlp", "headers"),
        "spec.observability.tracing.caSecretRef": ("Secret", "default", "ca", "ca.crt"),
        "spec.model.uri": ("PersistentVolumeClaim", "default", "weights", None),
        "spec.model.adapters[law].uri": ("PersistentVolumeClaim", "default", "lora", None),
        "spec.router.apiKeysSecretRef": ("Secret", "default", "keys", "all"),
        "spec.kvTransfer.network.attachmentRef": ("NetworkAttachmentDefinition", "nets", "fast", None),
    }
    hub = good(model={"uri": "hf://a/b", "authSecretRef": {"name": "hf"}})
    assert found(hub) == {"spec.model.authSecretRef": ("Secret", "default", "hf", "token")}
    inline = {"attachment": {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}}
    path = "spec.kvTransfer.network.attachment"
    assert found(good(kvTransfer={"network": inline})) == {
        path: ("NetworkAttachmentDefinition", "default", "chat-kv", None)
    }
    rails = [{"name": "a", "namespace": "nets", "resourceName": "v/a"}, {"name": "b", "resourceName": "v/b"}]
    assert found(good(kvTransfer={"network": {"rails": rails}})) == {
        "spec.kvTransfer.network.rails[0]": ("NetworkAttachmentDefinition", "nets", "a", None),
        "spec.kvTransfer.network.rails[1]": ("NetworkAttachmentDefinition", "default", "b", None),
    }


def test_the_template_of_a_device_claim_must_be_there() -> None:
    (claim,) = references_of(parse(good(decode={"deviceClaim": {"templateName": "pairs"}})))
    (gone,) = missing((claim,), {claim.target: Sight(exists=False)})
    words = "spec.decode.deviceClaim.templateName: ResourceClaimTemplate default/pairs does not exist"
    assert str(gone) == words


def test_an_edit_of_an_attachment_is_another_sight() -> None:
    def seen(config: str, resource: str) -> Sight:
        annotations = {"k8s.v1.cni.cncf.io/resourceName": resource}
        meta, spec = {"name": "fast", "annotations": annotations}, {"config": config}
        return sight_of({"kind": "NetworkAttachmentDefinition", "metadata": meta, "spec": spec})

    assert seen("{}", "a/b") == seen("{}", "a/b")
    assert len({seen("{}", "a/b"), seen("[]", "a/b"), seen("{}", "a/c")}) == 3
    assert sight_of({"kind": "NetworkAttachmentDefinition", "metadata": {}}) == Sight(exists=True)


def test_so_do_pod_templates_unless_a_source_is_optional() -> None:
    env = [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": 1}}},
        {"name": "C", "valueFrom": {"secretKeyRef": {"name": "o", "key": "k", "optional": True}}},
        {"name": "D", "valueFrom": "x"},
    ]
    volumes = [
        {"name": "p", "persistentVolumeClaim": {"claimName": "claim"}},
        {"name": "q", "projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": ""}}]}},
        {"name": "r", "secret": {"secretName": "s3"}},
        {"name": "t", "configMap": {"name": "c2", "optional": True}},
        {"name": "u", "configMap": {"name": "c3"}},
    ]
    containers = [{"name": "main", "env": env, "envFrom": [{"secretRef": {"name": "s4"}}, "x"]}]
    spec = {"priorityClassName": "high", "runtimeClassName": "", "volumes": volumes, "containers": containers}
    base = "spec.decode.podTemplate.spec"
    assert found(patched("decode", **spec)) == {
        f"{base}.priorityClassName": ("PriorityClass", "", "high", None),
        f"{base}.volumes[p].persistentVolumeClaim.claimName": ("PersistentVolumeClaim", "default", "claim", None),
        f"{base}.volumes[q].projected.sources[0].secret.name": ("Secret", "default", "s2", None),
        f"{base}.volumes[r].secret.secretName": ("Secret", "default", "s3", None),
        f"{base}.volumes[u].configMap.name": ("ConfigMap", "default", "c3", None),
        f"{base}.containers[main].env[A].valueFrom.secretKeyRef.name": ("Secret", "default", "s", "k"),
        f"{base}.containers[main].env[B].valueFrom.configMapKeyRef.name": ("ConfigMap", "default", "c", None),
        f"{base}.containers[main].envFrom[0].secretRef.name": ("Secret", "default", "s4", None),
    }
    router = {"podTemplate": {"spec": {"priorityClassName": "high"}}}
    assert found(good(router=router)) == {
        "spec.router.podTemplate.spec.priorityClassName": ("PriorityClass", "", "high", None)
    }
    assert found(good(decode={"podTemplate": {"metadata": {"labels": {"a": "b"}}}})) == {}


def test_only_what_is_known_to_be_missing_is_told() -> None:
    references = references_of(parse(good(model={"uri": "hf://a/b", "authSecretRef": {"name": "hf"}})))
    (target,) = {ref.target for ref in references}

    def told(sight: Sight | None) -> list[str]:
        return [str(violation) for violation in missing(references, {target: sight})]

    assert told(sight_of({"data": {"token": "x"}, "binaryData": None})) == []
    assert told(None) == []
    assert missing(references, {}) == []
    assert told(sight_of(None)) == ["spec.model.authSecretRef: Secret default/hf does not exist"]
    assert told(sight_of({"stringData": {}})) == ["spec.model.authSecretRef: Secret default/hf has no key token"]


def test_a_claim_without_its_volume_is_missing_and_a_network_has_its_own_reason() -> None:
    references = references_of(parse(good(model={"uri": "pvc://w"})))
    (lost,) = missing(references, {references[0].target: sight_of({"status": {"phase": "Lost"}})})
    assert str(lost) == "spec.model.uri: PersistentVolumeClaim default/w has lost its volume"
    network = references_of(parse(good(kvTransfer={"network": {"attachmentRef": {"name": "n"}}})))
    (gone,) = missing(network, {network[0].target: Sight(exists=False)})
    assert gone.reason == "NetworkAttachmentMissing"
    assert isinstance(network[0].target, NamedObject)


def test_what_the_operator_makes_itself_is_looked_at_and_never_missing() -> None:
    inline = {"attachment": {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}}
    (own,) = references_of(parse(good(kvTransfer={"network": inline})))
    assert missing((own,), {own.target: Sight(exists=False)}) == []
