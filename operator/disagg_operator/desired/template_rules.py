"""PURE: What a podTemplate may set: the list of allowed fields, and the permissions for others.

A field that is in no list is refused, so that a new field of Kubernetes is no way around. What the
operator itself sets and relies on is refused too: its environment variables, the image, command,
ports and probes of its containers, and its volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from disagg_operator.api.namespace_policy import NamespacePolicy, Permission
from disagg_operator.api.violation import INVALID_SPEC, Violation
from disagg_operator.desired.pod_parts import AFTER_START
from disagg_operator.desired.template_numbers import number_problems
from disagg_operator.desired.template_shapes import shape_problems
from disagg_operator.vocabulary import Obj, map_in, maps_in

NOT_PERMITTED = "NotPermitted"

# What Kubernetes gives a pod that says nothing.
_KUBERNETES_GRACE_S = 30
_METADATA = {"labels", "annotations"}
_NETWORKS = ("k8s.v1.cni.cncf.io/networks", "v1.multus-cni.io/default-network")
# Annotations that runtimes, network plugins and the like obey, past every field of the pod: by the
# domain or the beginning of their names.
_OBEYED = {
    Permission.PRIVILEGED: (
        "loosens the confinement of the containers",
        ("nri.io", "nri.containerd.io", "noderesource.dev", "cdi.k8s.io", "crio.io", "cri-o.io"),
        (
            "container.apparmor.security.beta.kubernetes.io/", "container.seccomp.security.alpha.kubernetes.io/",
            "seccomp.security.alpha.kubernetes.io/", "io.kubernetes.cri-o.", "io.kubernetes.cri.", "io.containerd.",
            "io.katacontainers.", "dev.gvisor.", "run.oci.", "sidecar.istio.io/userVolume",
        ),
    ),
    Permission.HOST_INTERFACES: (
        "attaches networks",
        (
            "k8s.v1.cni.cncf.io", "multus-cni.io", "danm.k8s.io", "danm.io", "networking.gke.io", "k8s.ovn.org",
            "ovn.kubernetes.io", "cni.projectcalico.org", "spidernet.io",
        ),
        (),
    ),
    Permission.SERVICE_ACCOUNTS: (
        "gives the pods other rights",
        ("iam.amazonaws.com", "iam.cloud.google.com"),
        (),
    ),
}  # fmt: skip
_POD = {
    "affinity", "containers", "dnsConfig", "dnsPolicy", "enableServiceLinks", "hostAliases", "hostUsers",
    "imagePullSecrets", "initContainers", "nodeSelector", "os", "preemptionPolicy", "priorityClassName",
    "readinessGates", "resourceClaims", "resources", "runtimeClassName", "schedulerName", "schedulingGates",
    "securityContext", "terminationGracePeriodSeconds", "tolerations", "topologySpreadConstraints", "volumes",
}  # fmt: skip
# The classes of what a cluster itself runs on.
_SYSTEM = "system-"
_HOST_NAMESPACES = {"hostNetwork", "hostPID", "hostIPC"}
_ACCOUNT = {"serviceAccountName", "serviceAccount", "automountServiceAccountToken"}
_CONTAINER = {
    "args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "name", "ports",
    "readinessProbe", "resizePolicy", "resources", "restartPolicy", "securityContext", "startupProbe", "stdin",
    "terminationMessagePath", "terminationMessagePolicy", "tty", "volumeDevices", "volumeMounts", "workingDir",
}  # fmt: skip
# Here the kubelet, which is on the node's network, makes a request.
_KUBELET_CALLS = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
# Of the containers that the operator makes, it sets these itself.
_OWNED = {"image", "command", "args", "startupProbe", "readinessProbe", "livenessProbe"}
_POD_SECURITY = {
    "fsGroup", "fsGroupChangePolicy", "runAsGroup", "runAsNonRoot", "runAsUser", "seccompProfile",
    "supplementalGroups", "supplementalGroupsPolicy",
}  # fmt: skip
_SECURITY = {
    "allowPrivilegeEscalation", "capabilities", "privileged", "readOnlyRootFilesystem", "runAsGroup", "runAsNonRoot",
    "runAsUser", "seccompProfile",
}  # fmt: skip
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected",
    "secret",
}  # fmt: skip
# Of a projected volume. The others are credentials of the pod's account.
_SOURCES = {"clusterTrustBundle", "configMap", "downwardAPI", "secret"}
_CREDENTIALS = {"podCertificate", "serviceAccountToken"}


@dataclass(frozen=True, slots=True)
class TemplateOwner:
    """The pod template that the operator generates, before it is patched."""

    template: Obj
    grace_s: int
    """The seconds that a worker may take to drain."""
    has_network: bool
    """Whether the pods are attached to a second network."""
    devices: frozenset[str]
    """The extended resources that other fields of the spec ask for."""
    variables: frozenset[str]
    """The environment variables of the worker or the engine that only the operator sets."""


def template_violations(patch: Obj, path: str, owner: TemplateOwner, policy: NamespacePolicy) -> Iterator[Violation]:
    """Yield what a podTemplate must not set. `path` is that of the podTemplate in the resource."""
    for part in ("metadata", "spec"):
        for place, words in shape_problems(owner.template[part], patch.get(part), f"{path}.{part}"):
            yield Violation(place, words)
    rules = _Rules(path, owner, policy)
    yield from rules.metadata(patch.get("metadata") or {})
    yield from rules.pod(patch.get("spec") or {})
    for part in ("metadata", "spec"):
        for place, words in number_problems(patch.get(part), f"{path}.{part}"):
            yield Violation(place, words)


class _Rules:
    """The rules for one podTemplate."""

    def __init__(self, path: str, owner: TemplateOwner, policy: NamespacePolicy) -> None:
        self._path = path
        self._owner = owner
        self._policy = policy
        self._base = owner.template["spec"]

    def metadata(self, metadata: Obj) -> Iterator[Violation]:
        path = f"{self._path}.metadata"
        yield from self._unlisted(metadata, _METADATA, path)
        ours = self._owner.template["metadata"].get("labels") or {}
        for name in map_in(metadata.get("labels")):
            if name in ours or name.startswith("disagg.dev/"):
                yield Violation(f"{path}.labels[{name}]", "is set by the operator")
        for name in map_in(metadata.get("annotations")):
            yield from self._annotation(name, f"{path}.annotations[{name}]")

    def _annotation(self, name: str, path: str) -> Iterator[Violation]:
        if not self._policy.allows_annotation(name):
            yield Violation(path, "is none of the annotations that this namespace may set", NOT_PERMITTED)
        advice = ": use spec.kvTransfer.network" if name in _NETWORKS else ""
        if advice and self._owner.has_network:
            yield Violation(path, f"would replace the network of the KV cache{advice}")
            return
        domain = name.partition("/")[0]
        for permission, (words, domains, beginnings) in _OBEYED.items():
            if f".{domain}".endswith(tuple(f".{d}" for d in domains)) or name.startswith(beginnings):
                yield from self._needs(permission, path, f"{words}{advice}")

    def pod(self, pod: Obj) -> Iterator[Violation]:
        path = f"{self._path}.spec"
        for name in sorted(_HOST_NAMESPACES & pod.keys()):
            if pod[name] not in (None, False):
                yield from self._needs(Permission.HOST_NAMESPACES, f"{path}.{name}", "shares a namespace of the node")
        for name in sorted(_ACCOUNT & pod.keys()):
            # Null would remove ours, and leave the pods the namespace's default account.
            if pod[name] not in (False, self._base.get("serviceAccountName")):
                yield from self._needs(Permission.SERVICE_ACCOUNTS, f"{path}.{name}", "gives the pods other rights")
        for claim in _named(self._base.get("resourceClaims")):
            given = pod.get("resourceClaims", [])
            if given is None or any(other["name"] == claim["name"] for other in _named(given)):
                where = f"{path}.resourceClaims[{claim['name']}]"
                yield from self._owned(where, "is the claim of the operator; use deviceClaim")
        if str(pod.get("priorityClassName")).startswith(_SYSTEM):
            words = "evicts the pods of everybody else"
            yield from self._needs(Permission.PRIVILEGED, f"{path}.priorityClassName", words)
        yield from self._unlisted(pod, _POD | _HOST_NAMESPACES | _ACCOUNT, path)
        if "terminationGracePeriodSeconds" in pod:
            yield from self._grace(pod["terminationGracePeriodSeconds"], f"{path}.terminationGracePeriodSeconds")
        yield from self._security(pod.get("securityContext", {}), _POD_SECURITY, f"{path}.securityContext")
        for volume in _named(pod.get("volumes")):
            yield from self._volume(volume, f"{path}.volumes[{volume['name']}]")
        for kind in ("initContainers", "containers"):
            base = {c["name"]: c for c in self._base.get(kind) or []}
            for container in _named(pod.get(kind)):
                here = f"{path}.{kind}[{container['name']}]"
                yield from self._container(container, here)
                if container["name"] in base:
                    yield from self._own_container(container, base[container["name"]], here)
                else:
                    yield from self._further_container(container, here)

    def _grace(self, seconds: Any, path: str) -> Iterator[Violation]:
        needed = self._owner.grace_s
        if seconds is None:
            seconds = _KUBERNETES_GRACE_S
        if isinstance(seconds, int) and not isinstance(seconds, bool) and seconds < needed:
            yield Violation(
                path, f"{seconds} s are less than drain.timeoutSeconds, {needed} s: requests would be cut off"
            )

    def _security(self, context: Any, listed: set[str], path: str) -> Iterator[Violation]:
        words = "loosens the confinement of the pod"
        if context is None:  # null removes what is generated
            yield from self._needs(Permission.PRIVILEGED, path, words)
        context = map_in(context)
        yield from self._unlisted(context, listed, path, Permission.PRIVILEGED)
        for name, loosens in _LOOSENING.items():
            if name in context and loosens(context[name]):
                yield from self._needs(Permission.PRIVILEGED, f"{path}.{name}", words)

    def _volume(self, volume: Obj, path: str) -> Iterator[Violation]:
        sources = {name for name, value in volume.items() if name != "name" and value is not None}
        if "hostPath" in sources:
            yield from self._needs(Permission.HOST_PATH, f"{path}.hostPath", "opens files of the node")
        listed = dict.fromkeys(sources - {"hostPath"}, True)
        yield from self._unlisted(listed, _VOLUMES, path)
        for index, source in enumerate(maps_in(map_in(volume.get("projected")).get("sources"))):
            here = f"{path}.projected.sources[{index}]"
            for name in sorted(_CREDENTIALS & source.keys()):
                if source[name] is not None:
                    yield from self._needs(Permission.SERVICE_ACCOUNTS, f"{here}.{name}", "gives the pods other rights")
            yield from self._unlisted(source, _SOURCES | _CREDENTIALS, here)
        ours: Obj = next((v for v in self._base.get("volumes") or [] if v["name"] == volume["name"]), {})
        if ours and "emptyDir" not in ours:
            yield from self._owned(path, "is a volume of the operator")
        image = map_in(volume.get("image")).get("reference")
        yield from self._image(image, f"{path}.image.reference")

    def _container(self, container: Obj, path: str) -> Iterator[Violation]:
        """Yield what no container may set."""
        yield from self._unlisted(container, _CONTAINER, path)
        yield from self._security(container.get("securityContext", {}), _SECURITY, f"{path}.securityContext")
        for name in _KUBELET_CALLS:
            if _names_host(container.get(name)):
                words = "makes the kubelet call another host"
                yield from self._needs(Permission.HOST_NAMESPACES, f"{path}.{name}", words)
        yield from self._image(container.get("image"), f"{path}.image")
        for port in maps_in(container.get("ports")):
            where = f"{path}.ports[{port.get('name', port.get('containerPort'))}]"
            if port.get("hostPort") not in (None, 0):
                yield from self._needs(Permission.HOST_NAMESPACES, f"{where}.hostPort", "is a port of the node")
            if port.get("containerPort") in self._ports():
                yield from self._owned(f"{where}.containerPort", "is a port of the operator's containers")

    def _own_container(self, container: Obj, base: Obj, path: str) -> Iterator[Violation]:
        """Yield what a container of the operator may not be given."""
        owned = _OWNED if base.get("lifecycle", AFTER_START) == AFTER_START else _OWNED | {"lifecycle"}
        for name in sorted(owned & container.keys()):
            yield from self._owned(f"{path}.{name}", "is set by the operator" + _ADVICE.get(name, ""))
        variables = self._owner.variables
        if base["name"] != "main":
            variables |= {e["name"] for e in base.get("env") or []}
        for entry in _named(container.get("env")):
            if entry["name"] in variables:
                yield from self._owned(
                    f"{path}.env[{entry['name']}]", "is set by the operator; use a field of the spec"
                )
        mounts = {m["mountPath"]: m["name"] for m in base.get("volumeMounts") or []}
        for mount in maps_in(container.get("volumeMounts")):
            place = mount.get("mountPath")
            if isinstance(place, str) and place in mounts and mount.get("name") != mounts[place]:
                yield from self._owned(f"{path}.volumeMounts[{place}]", "is a folder of the operator")
        for name in sorted({"ports", "volumeMounts"} & container.keys()):
            if container[name] is None and base.get(name):
                yield from self._owned(f"{path}.{name}", "would be removed, and is set by the operator")
        ports = {p["name"] for p in base.get("ports") or []}
        for port in _named(container.get("ports")):
            if port["name"] in ports:
                yield from self._owned(f"{path}.ports[{port['name']}]", "is a port of the operator")
        if "resources" in container:
            yield from self._devices(container["resources"], base.get("resources") or {}, f"{path}.resources")

    def _devices(self, given: Any, base: Obj, path: str) -> Iterator[Violation]:
        """Yield the devices of a container of the operator that are changed, or removed by null."""
        for section, amounts in base.items():
            ours = {"*"} if section == "claims" else amounts.keys() & self._owner.devices
            if ours and (given is None or map_in(given).get(section, ours) is None):
                where = path if given is None else f"{path}.{section}"
                yield from self._owned(where, "would be removed, with devices that other fields of the spec ask for")
        for section, amounts in map_in(given).items():
            for name in sorted(map_in(amounts).keys() & self._owner.devices):
                yield from self._owned(f"{path}.{section}[{name}]", "is asked for by another field of the spec")

    def _further_container(self, container: Obj, path: str) -> Iterator[Violation]:
        """Yield what a container beside those of the operator may not do."""
        keys = [v["name"] for v in self._base.get("volumes") or [] if "secret" in v]
        for mount in maps_in(container.get("volumeMounts")):
            if mount.get("name") in keys:
                words = "holds a secret of the operator's containers"
                yield from self._owned(f"{path}.volumeMounts[{mount.get('mountPath')}]", words)

    def _ports(self) -> list[int]:
        return [p["containerPort"] for c in self._base["containers"] for p in c.get("ports") or []]

    def _image(self, image: Any, path: str) -> Iterator[Violation]:
        if isinstance(image, str) and not self._policy.allows_image(image):
            yield Violation(path, f"{image} is none of the images that this namespace may run", NOT_PERMITTED)

    def _owned(self, path: str, words: str) -> Iterator[Violation]:
        yield from self._needs(Permission.OPERATOR_FIELDS, path, words)

    def _unlisted(
        self, held: Obj, listed: set[str], path: str, permission: Permission = Permission.UNLISTED_FIELDS
    ) -> Iterator[Violation]:
        for name in sorted(held.keys() - listed):
            if held[name] is not None:
                words = "is no field that a podTemplate may set"
                reason = INVALID_SPEC if permission is Permission.UNLISTED_FIELDS else NOT_PERMITTED
                yield from self._needs(permission, f"{path}.{name}", words, reason)

    def _needs(self, permission: Permission, path: str, words: str, reason: str = NOT_PERMITTED) -> Iterator[Violation]:
        if not self._policy.allows(permission):
            yield Violation(path, f"{words} (this namespace lacks the permission {permission})", reason)


_ADVICE = {"image": "; use engine.image", "args": "; use engine.args"}
_LOOSENING: dict[str, Callable[[Any], bool]] = {
    "privileged": lambda v: v not in (None, False),
    "allowPrivilegeEscalation": lambda v: v is not False,
    "runAsNonRoot": lambda v: v is not True,
    "runAsUser": lambda v: v == 0,
    "seccompProfile": lambda v: not isinstance(v, dict) or v.get("type") not in ("RuntimeDefault", "Localhost"),
    "capabilities": lambda v: (
        not isinstance(v, dict) or bool(v.get("add")) or "ALL" not in _list(v.get("drop", ["ALL"]))
    ),
}


def _names_host(handlers: Any) -> bool:
    """Return whether a probe or a hook names a host other than the pod."""
    if not isinstance(handlers, dict):
        return False
    return "host" in handlers or any(_names_host(handler) for handler in handlers.values())


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _named(value: Any) -> list[Obj]:
    return [item for item in maps_in(value) if isinstance(item.get("name"), str)]
