"""PURE: The pod templates of workers and routers, with their probes, devices and second network.

The pods satisfy the restricted Pod Security Standard and have a read-only root file system.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired import names
from disagg_operator.desired.environment import router_environment, worker_environment
from disagg_operator.desired.facts import Images
from disagg_operator.desired.merge import merge
from disagg_operator.vocabulary import Obj
from disagg_wire.environment import RouterVariable, WorkerOption, WorkerVariable
from disagg_wire.labels import LABEL_REVISION
from disagg_wire.ports import KV_PORT, ROUTER_PORT, WORKER_PORT
from disagg_wire.protocol import HEALTH_PATH, READY_PATH

_USER = 65532
KEY_MOUNT = "/var/run/disagg/key"
API_KEYS_MOUNT = "/var/run/disagg/api-keys"
MODEL_MOUNT = "/mnt/model"
NETWORKS_ANNOTATION = "k8s.v1.cni.cncf.io/networks"
# A worker may take hours to load its model (hundreds of GB from a shared disk), so the startup
# probe allows two hours before the worker counts as dead.
_STARTUP_PERIOD_S, _STARTUP_FAILURES = 2, 3600
_TERMINATION_SLACK_S = 15
_ROUTER_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}


def _env(values: dict[str, str]) -> list[Obj]:
    return [{"name": str(k), "value": v} for k, v in sorted(values.items())]


def _field(name: str, path: str) -> Obj:
    return {"name": str(name), "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _security(capabilities: list[str] | None = None) -> Obj:
    add = {"add": capabilities} if capabilities else {}
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **add},
    }


def _pod_security() -> Obj:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _probe(path: str, port: int, period_s: int, failures: int) -> Obj:
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def _key_volume(dd: DisaggDeployment) -> Obj:
    secret = {"secretName": names.key_secret_name(dd.metadata.name), "defaultMode": 0o440}
    return {"name": "cluster-key", "secret": secret}


def _spread(dd: DisaggDeployment, component: str) -> list[Obj]:
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names.selector(dd.metadata.name, component)},
        }
    ]


def revision_of(template: Obj) -> str:
    """Return ten hexadecimal digits that change exactly when the rendered pods change."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _worker_resources(dd: DisaggDeployment, role: str) -> Obj:
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


def _worker_container(dd: DisaggDeployment, role: str, images: Images) -> Obj:
    spec = dd.spec
    values = worker_environment(dd, role) | {
        WorkerVariable.PORT: str(WORKER_PORT),
        WorkerVariable.KV_PORT: str(KV_PORT),
        WorkerVariable.CLUSTER_KEY_FILE: f"{KEY_MOUNT}/cluster-key",
        WorkerVariable.CACHE_DIR: "/cache",
        WorkerVariable.MODEL_MOUNT: MODEL_MOUNT,
        WorkerOption.HF_HOME: "/cache",
    }
    if spec.kv_transfer.network is not None:
        values[WorkerVariable.KV_INTERFACE] = spec.kv_transfer.network.interface
    values |= {e.name: e.value for e in spec.engine.env}
    env = [
        *_env(values),
        _field(WorkerVariable.HOST, "status.podIP"),
        _field(WorkerVariable.POD_NAME, "metadata.name"),
        _field(WorkerVariable.POD_UID, "metadata.uid"),
    ]
    if spec.model.auth_secret_ref is not None:
        reference = {"name": spec.model.auth_secret_ref.name, "key": spec.model.auth_secret_ref.key}
        env.append({"name": str(WorkerVariable.HF_TOKEN), "valueFrom": {"secretKeyRef": reference}})
    mounts = [
        {"name": "cluster-key", "mountPath": KEY_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a mount point inside the pod)
        {"name": "cache", "mountPath": "/cache"},
    ]
    if spec.model.uri.startswith("pvc://"):
        mounts.append({"name": "model", "mountPath": MODEL_MOUNT, "readOnly": True})
    if spec.pool(role).parallelism.tensor > 1:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 (a mount point inside the pod)
    return {
        "name": "main",
        "image": spec.engine.image or images.worker,
        "imagePullPolicy": images.pull_policy,
        "env": env,
        "ports": [
            {"name": "http", "containerPort": WORKER_PORT, "protocol": "TCP"},
            {"name": "kv", "containerPort": KV_PORT, "protocol": "TCP"},
        ],
        "resources": _worker_resources(dd, role),
        "startupProbe": _probe(READY_PATH, WORKER_PORT, _STARTUP_PERIOD_S, _STARTUP_FAILURES),
        "readinessProbe": _probe(READY_PATH, WORKER_PORT, 2, 2),
        "livenessProbe": _probe(HEALTH_PATH, WORKER_PORT, 10, 6),
        "securityContext": _security(["IPC_LOCK"] if spec.kv_transfer.transport == "rdma" else None),
        "volumeMounts": mounts,
    }


def _networks(dd: DisaggDeployment) -> str | None:
    """Return the value of the Multus annotation, or None if no network is attached."""
    network = dd.spec.kv_transfer.network
    if network is None:
        return None
    reference = network.attachment_ref
    name = reference.name if reference else names.network_name(dd.metadata.name)
    namespace = (reference.namespace if reference else None) or dd.metadata.namespace
    return json.dumps([{"name": name, "namespace": namespace, "interface": network.interface}])


def worker_template(dd: DisaggDeployment, role: str, images: Images) -> tuple[Obj, str]:
    """Return the pod template of a pool and its revision.

    The revision is also in the labels of the template and in the environment of the worker.
    """
    pool, spec = dd.spec.pool(role), dd.spec
    volumes: list[Obj] = [_key_volume(dd), {"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}]
    if spec.model.uri.startswith("pvc://"):
        claim = spec.model.uri.removeprefix("pvc://").partition("/")[0]
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    if pool.parallelism.tensor > 1:  # for NCCL, because the default /dev/shm of a pod has 64 MiB
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}})
    pod: Obj = {
        "serviceAccountName": f"{dd.metadata.name}-worker",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pool.drain.timeout_seconds + _TERMINATION_SLACK_S,
        "securityContext": _pod_security(),
        "topologySpreadConstraints": _spread(dd, role),
        "containers": [_worker_container(dd, role, images)],
        "volumes": volumes,
    }
    if pool.accelerator is not None and pool.accelerator.product:
        pod["nodeSelector"] = {"nvidia.com/gpu.product": pool.accelerator.product}
    if pool.accelerator is not None and pool.accelerator.count:
        # Nodes with devices are usually tainted with the resource's name.
        pod["tolerations"] = [{"key": pool.accelerator.resource_name, "operator": "Exists", "effect": "NoSchedule"}]
    template: Obj = {"metadata": {"labels": names.labels(dd.metadata.name, role)}, "spec": pod}
    if networks := _networks(dd):
        template["metadata"]["annotations"] = {NETWORKS_ANNOTATION: networks}
    if pool.pod_template is not None:
        template = merge(template, pool.pod_template.as_patch())
    # A patch must not change the labels that selectors, disruption budgets and policies rely on.
    template["metadata"]["labels"] = template["metadata"]["labels"] | names.labels(dd.metadata.name, role)
    revision = revision_of(template)
    template["metadata"]["labels"] = template["metadata"]["labels"] | {LABEL_REVISION: revision}
    for container in template["spec"]["containers"]:
        if container["name"] == "main":
            container["env"] = [*container["env"], {"name": str(WorkerVariable.REVISION), "value": revision}]
    return template, revision


def router_template(dd: DisaggDeployment, images: Images) -> Obj:
    """Return the pod template of the routers."""
    spec = dd.spec
    values = router_environment(dd) | {
        RouterVariable.HOST: "0.0.0.0",  # noqa: S104 (the router is the front door; its pod's network is its own)
        RouterVariable.PORT: str(ROUTER_PORT),
        RouterVariable.CLUSTER_KEY_FILE: f"{KEY_MOUNT}/cluster-key",
        RouterVariable.MEMBERSHIP: "kubernetes",
        RouterVariable.NAMESPACE: dd.metadata.namespace,
        RouterVariable.DEPLOYMENT: dd.metadata.name,
    }
    volumes: list[Obj] = [_key_volume(dd), {"name": "tmp", "emptyDir": {}}]
    mounts: list[Obj] = [
        {"name": "cluster-key", "mountPath": KEY_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a mount point inside the pod)
    ]
    if (keys := spec.router.api_keys_secret_ref) is not None:
        values[RouterVariable.API_KEYS_FILE] = f"{API_KEYS_MOUNT}/{keys.key}"
        volumes.append({"name": "api-keys", "secret": {"secretName": keys.name, "defaultMode": 0o440}})
        mounts.append({"name": "api-keys", "mountPath": API_KEYS_MOUNT, "readOnly": True})
    container: Obj = {
        "name": "main",
        "image": spec.router.image or images.router,
        "imagePullPolicy": images.pull_policy,
        "env": _env(values),
        "ports": [{"name": "http", "containerPort": ROUTER_PORT, "protocol": "TCP"}],
        "resources": _ROUTER_RESOURCES if spec.router.resources is None else spec.router.resources.as_pod(),
        "readinessProbe": _probe(READY_PATH, ROUTER_PORT, 2, 2),
        "livenessProbe": _probe(HEALTH_PATH, ROUTER_PORT, 10, 6),
        "securityContext": _security(),
        "volumeMounts": mounts,
    }
    pod: dict[str, Any] = {
        "serviceAccountName": f"{dd.metadata.name}-router",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 120,
        "securityContext": _pod_security(),
        "topologySpreadConstraints": _spread(dd, "router"),
        "containers": [container],
        "volumes": volumes,
    }
    return {"metadata": {"labels": names.labels(dd.metadata.name, "router")}, "spec": pod}
