"""PURE: The parts of which pods are put together: probes, security, volumes and devices."""

from __future__ import annotations

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired import names
from disagg_operator.vocabulary import Obj, Objs

USER = 65532
KEY_MOUNT = "/var/run/disagg/key"
KEY_FILE = f"{KEY_MOUNT}/cluster-key"
# A worker may take hours to load its model (hundreds of GB from a shared disk), so the startup
# probe allows two hours before the worker counts as dead.
STARTUP_PERIOD_S, STARTUP_FAILURES = 2, 3600


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


def user() -> Obj:
    """Return the part of a security context that says as whom to run."""
    return {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}


def pod_security() -> Obj:
    """Return the security context of a pod."""
    return {**user(), "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}


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


def worker_resources(dd: DisaggDeployment, role: str) -> Obj:
    """Return the resources of the container that computes, with all devices."""
    pool, network = dd.spec.pool(role), dd.spec.kv_transfer.network
    resources: Obj = {} if pool.resources is None else pool.resources.as_pod()
    devices: dict[str, int] = {}
    if pool.accelerator is not None and pool.accelerator.count:
        devices[pool.accelerator.resource_name] = pool.accelerator.count
    if network is not None and network.rdma_resource is not None:
        devices[network.rdma_resource.name] = network.rdma_resource.devices(
            0 if pool.accelerator is None else pool.accelerator.count
        )
    if network is not None and network.attachment is not None and network.attachment.resource_name:
        name = network.attachment.resource_name  # may be the RDMA device itself
        devices[name] = max(1, devices.get(name, 0))
    for name, count in devices.items():
        for section in ("requests", "limits"):
            resources.setdefault(section, {})[name] = str(count)
    return resources
