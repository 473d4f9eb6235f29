"""PURE: The parts of which pods are put together: probes, security, volumes and devices."""

from __future__ import annotations

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired import names
from disagg_operator.desired.attachments import network_devices
from disagg_operator.desired.renderer import (
    CONFINED_SIDECARS,
    CURRENT,
    LAST_WORDS,
    RDMA_REPORTS,
    SIGNAL_AFTER_START,
    WORKER_REQUESTS,
)
from disagg_operator.vocabulary import Obj, Objs

USER = 65532
KEY_MOUNT = "/var/run/disagg/key"
KEY_FILE = f"{KEY_MOUNT}/cluster-key"
# The name of the claim inside a pod.
DEVICE_CLAIM = "devices"
# A worker may take hours to load its model (hundreds of GB from a shared disk), so the startup
# probe allows two hours before the worker counts as dead.
STARTUP_PERIOD_S, STARTUP_FAILURES = 2, 3600
# A pod must be scheduled, its images pulled, and its model may have to be fetched first.
_SCHEDULING_S = 600
# The container of a worker's pod that speaks to the routers, where the engine does not.
ADAPTER = "adapter"


def env(values: dict[str, str]) -> Objs:
    """Return variables as a container has them, in alphabetical order."""
    return [{"name": str(k), "value": v} for k, v in sorted(values.items())]


def env_field(name: str, path: str) -> Obj:
    """Return a variable that holds a field of the pod."""
    return {"name": str(name), "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def security(capabilities: list[str] | None = None) -> Obj:
    """Return the security context of a container."""
    add = {"add": capabilities} if capabilities else {}
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **add},
    }


def confine_further(spec: Obj, ours: Obj, renderer: int) -> None:
    """Confine the containers of a merged pod that the operator's own pod (`ours`) does not have."""
    for kind in ("containers", "initContainers") if renderer >= CONFINED_SIDECARS else ():
        known = {container["name"] for container in ours.get(kind) or []}
        if spec.get(kind):
            spec[kind] = [c if c["name"] in known else _confined(c) for c in spec[kind]]


def _confined(container: Obj) -> Obj:
    """Return a container that may not get more rights, unless it asks for them by name.

    It needs a permission of its namespace for that.
    """
    context = container.get("securityContext") or {}
    capabilities = (context.get("capabilities") or {}) if isinstance(context, dict) else None
    if not isinstance(capabilities, dict) or context.get("privileged") or capabilities.get("add"):
        return container
    dropped = {"capabilities": {"drop": ["ALL"]} | capabilities}
    return {**container, "securityContext": {"allowPrivilegeEscalation": False} | context | dropped}


def user() -> Obj:
    """Return the part of a security context that says as whom to run."""
    return {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}


def lock_capabilities(dd: DisaggDeployment, renderer: int) -> list[str] | None:
    """Return the capabilities by which the container that moves KV may lock memory.

    Without root, a capability of the bounding set is not effective.
    """
    always = renderer < RDMA_REPORTS and dd.spec.kv_transfer.transport == "rdma"
    return ["IPC_LOCK"] if always or _as_root(dd) else None


def lock_user(dd: DisaggDeployment) -> Obj:
    """Return the user of the container that moves KV, if it is not that of the pod.

    Files of the pod's group are its own: it has no capability but that to lock memory.
    """
    return {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": USER} if _as_root(dd) else {}


def _as_root(dd: DisaggDeployment) -> bool:
    network = dd.spec.kv_transfer.network
    return network is not None and network.rdma_mode == "Root"


def pod_security() -> Obj:
    """Return the security context of a pod."""
    return {**user(), "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}


def last_words(renderer: int = CURRENT) -> Obj:
    """Return the field of a container by which the kubelet keeps the end of its log."""
    return {"terminationMessagePolicy": "FallbackToLogsOnError"} if renderer >= LAST_WORDS else {}


# A SIGTERM that comes between the start of a container and the first step of its first process is
# lost, and nobody repeats it: the pod keeps its devices for its whole grace period.
AFTER_START: Obj = {"preStop": {"sleep": {"seconds": 1}}}


def hear_the_signal(template: Obj, renderer: int) -> None:
    """Let the operator's containers get SIGTERM a second after the pod has been deleted, unless
    they have another hook.
    """
    if renderer < SIGNAL_AFTER_START:
        return
    for container in template["spec"]["containers"]:
        if container["name"] in ("main", ADAPTER):
            container["lifecycle"] = AFTER_START | (container.get("lifecycle") or {})


def probe(path: str, port: int, period_s: int, failures: int) -> Obj:
    """Return an HTTP probe."""
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def key_volume(dd: DisaggDeployment) -> Obj:
    """Return the volume of the cluster key."""
    secret = {"secretName": names.key_secret_name(dd.metadata.name), "defaultMode": 0o440}
    return {"name": "cluster-key", "secret": secret}


def progress_deadline_s(dd: DisaggDeployment, role: str) -> int:
    """Return how long a rollout may go without progress: another pod drains, and one starts."""
    return dd.spec.pool(role).drain.timeout_seconds + STARTUP_PERIOD_S * STARTUP_FAILURES + _SCHEDULING_S


def _default_requests(devices: int) -> dict[str, str]:
    """Return what a worker requests if its pool does not say it.

    It is little, so that it fits on any node that has the devices: a resource that says what its
    workers need is better served.
    """
    return {"cpu": str(devices), "memory": f"{4 * devices}Gi"} if devices else {"cpu": "100m", "memory": "512Mi"}


def _with_requests(resources: Obj, devices: int) -> Obj:
    """Return resources with the default requests of what is neither requested nor limited."""
    given = {*resources.get("requests", {}), *resources.get("limits", {})}
    missing = {k: v for k, v in _default_requests(devices).items() if k not in given}
    return {**resources, "requests": {**resources.get("requests", {}), **missing}} if missing else resources


def device_claims(dd: DisaggDeployment, role: str) -> Obj:
    """Return the field of a pod by which each worker gets a claim of its own."""
    claim = dd.spec.pool(role).device_claim
    if claim is None:
        return {}
    return {"resourceClaims": [{"name": DEVICE_CLAIM, "resourceClaimTemplateName": claim.template_name}]}


def worker_resources(dd: DisaggDeployment, role: str, renderer: int) -> Obj:
    """Return the resources of the container that computes, with all devices."""
    pool = dd.spec.pool(role)
    resources: Obj = {} if pool.resources is None else pool.resources.as_pod()
    if renderer >= WORKER_REQUESTS:
        resources = _with_requests(resources, 0 if pool.accelerator is None else pool.accelerator.count)
    devices: dict[str, int] = {}
    claim = pool.device_claim
    if claim is not None:
        resources["claims"] = [{"name": DEVICE_CLAIM}]
    claimed = claim is not None and claim.accelerators
    if pool.accelerator is not None and pool.accelerator.count and not claimed:
        devices[pool.accelerator.resource_name] = pool.accelerator.count
    for name, count in network_devices(dd, role, renderer).items():
        devices[name] = max(count, devices.get(name, 0))
    for name, count in devices.items():
        for section in ("requests", "limits"):
            resources.setdefault(section, {})[name] = str(count)
    return resources
