"""PURE: The pod templates of workers and routers, with their probes, devices and second network.

The pods satisfy the restricted Pod Security Standard and have a read-only root file system.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.workers import Accelerator, PodTemplate
from disagg_operator.desired import attachments, names
from disagg_operator.desired import pod_parts as parts
from disagg_operator.desired.accelerators import NVIDIA, maker_of, taints_of
from disagg_operator.desired.adapted_worker import adapted_pod
from disagg_operator.desired.engine_inputs import engine_process
from disagg_operator.desired.environment import router_environment, transport_environment, worker_environment
from disagg_operator.desired.facts import Images
from disagg_operator.desired.merge import merge
from disagg_operator.desired.model_places import MODEL_MOUNT, claim_mounts, claim_volumes
from disagg_operator.desired.renderer import MAKERS_LABELS, RDMA_REPORTS, ROUTERS_OUTLAST_HOLDS, WORKER_TRANSPORT
from disagg_operator.desired.scratch_space import cache_volume, tmp_volume
from disagg_operator.vocabulary import Obj, Objs
from disagg_wire.environment import RouterVariable, WorkerOption, WorkerVariable
from disagg_wire.labels import LABEL_REVISION
from disagg_wire.ports import KV_PORT, ROUTER_PORT, WORKER_PORT
from disagg_wire.protocol import HEALTH_PATH, READY_PATH
from disagg_wire.roles import DECODE, PREFILL

API_KEYS_MOUNT = "/var/run/disagg/api-keys"
TRACING_MOUNT = "/var/run/disagg/tracing"
_TERMINATION_SLACK_S = 15
# A router's default for the end of its requests, and some seconds.
_ROUTER_GRACE_S = 120
_ROUTER_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}


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


def _worker_container(dd: DisaggDeployment, role: str, images: Images) -> Obj:
    spec = dd.spec
    values = worker_environment(dd, role) | {
        WorkerVariable.PORT: str(WORKER_PORT),
        WorkerVariable.KV_PORT: str(KV_PORT),
        WorkerVariable.CLUSTER_KEY_FILE: parts.KEY_FILE,
        WorkerVariable.CACHE_DIR: "/cache",
        WorkerVariable.MODEL_MOUNT: MODEL_MOUNT,
        WorkerOption.HF_HOME: "/cache",
    }
    if spec.kv_transfer.network is not None:
        values[WorkerVariable.KV_INTERFACE] = spec.kv_transfer.network.interface
        if images.renderer >= RDMA_REPORTS and spec.kv_transfer.may_use_rdma:
            values[WorkerVariable.RDMA_DEVICES] = str(attachments.device_count(dd, role))
    if images.renderer >= WORKER_TRANSPORT:
        values |= transport_environment(dd)
    values |= {e.name: e.value for e in spec.engine.env}
    env = [
        *parts.env(values),
        parts.env_field(WorkerVariable.HOST, "status.podIP"),
        parts.env_field(WorkerVariable.POD_NAME, "metadata.name"),
        parts.env_field(WorkerVariable.POD_UID, "metadata.uid"),
    ]
    if spec.model.auth_secret_ref is not None:
        reference = {"name": spec.model.auth_secret_ref.name, "key": spec.model.auth_secret_ref.key}
        env.append({"name": str(WorkerVariable.HF_TOKEN), "valueFrom": {"secretKeyRef": reference}})
    mounts = [
        {"name": "cluster-key", "mountPath": parts.KEY_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a mount point inside the pod)
        {"name": "cache", "mountPath": "/cache"},
    ]
    mounts += claim_mounts(dd)
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
        "resources": parts.worker_resources(dd, role, images.renderer),
        "startupProbe": parts.probe(READY_PATH, WORKER_PORT, parts.STARTUP_PERIOD_S, parts.STARTUP_FAILURES),
        "readinessProbe": parts.probe(READY_PATH, WORKER_PORT, 2, 2),
        "livenessProbe": parts.probe(HEALTH_PATH, WORKER_PORT, 10, 6),
        "securityContext": parts.security(parts.lock_capabilities(dd, images.renderer)) | parts.lock_user(dd),
        **parts.last_words(images.renderer),
        "volumeMounts": mounts,
    }


def _nodes(accelerator: Accelerator, renderer: int) -> Obj:
    """Return the fields of a pod that choose nodes with its accelerators."""
    out: Obj = {}
    maker = maker_of(accelerator.resource_name) if renderer >= MAKERS_LABELS else None
    if accelerator.product:
        label = accelerator.product_label or (NVIDIA if maker is None else maker).product_label
        out["nodeSelector"] = {label: accelerator.product}
    if accelerator.count:
        keys = taints_of(accelerator.resource_name) if renderer >= MAKERS_LABELS else (accelerator.resource_name,)
        out["tolerations"] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
    return out


def _near_prefill(dd: DisaggDeployment, role: str) -> Obj:
    """Return the affinity of decode workers to prefill workers, if there is to be one.

    It names no revision: the first workers of a new one have nobody of their own yet.
    """
    near = dd.spec.kv_transfer.co_location
    if near is None or role != DECODE:
        return {}
    term = {
        "topologyKey": near.topology_key,
        "labelSelector": {"matchLabels": names.selector(dd.metadata.name, PREFILL)},
    }
    if near.mode == "Required":
        return {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}


def _own_pod(dd: DisaggDeployment, role: str, images: Images) -> Obj:
    """Return the parts of the spec of a bundled worker's pod that depend on its container."""
    volumes: Objs = [
        parts.key_volume(dd),
        tmp_volume(renderer=images.renderer),
        cache_volume(dd, role, images.renderer),
        *claim_volumes(dd),
    ]
    if dd.spec.pool(role).parallelism.tensor > 1:  # for NCCL, because the default /dev/shm of a pod has 64 MiB
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}})
    return {
        "securityContext": parts.pod_security(),
        "containers": [_worker_container(dd, role, images)],
        "volumes": volumes,
    }


def worker_template(dd: DisaggDeployment, role: str, images: Images) -> tuple[Obj, str]:
    """Return the pod template of a pool and its revision.

    The revision is also in the labels of the template and in the environment of the container that
    speaks to the routers.
    """
    pool, process = dd.spec.pool(role), engine_process(dd, role)
    content = _own_pod(dd, role, images) if process is None else adapted_pod(dd, role, process, images)
    pod: Obj = {
        "serviceAccountName": f"{dd.metadata.name}-worker",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pool.drain.timeout_seconds + _TERMINATION_SLACK_S,
        "securityContext": content["securityContext"],
        "topologySpreadConstraints": _spread(dd, role),
        **content,
    }
    if pool.accelerator is not None:
        pod |= _nodes(pool.accelerator, images.renderer)
    template: Obj = {"metadata": {"labels": names.labels(dd.metadata.name, role)}, "spec": pod}
    pod |= _pull_secrets(dd) | _near_prefill(dd, role) | parts.device_claims(dd, role)
    if links := attachments.links_of(dd, role, images.renderer):
        template["metadata"]["annotations"] = {attachments.NETWORKS_ANNOTATION: attachments.networks_text(links)}
    template = _patched(dd, role, template, pool.pod_template, images.renderer)
    parts.hear_the_signal(template, images.renderer)
    revision = revision_of(template)
    template["metadata"]["labels"] = template["metadata"]["labels"] | {LABEL_REVISION: revision}
    speaker = "main" if process is None else parts.ADAPTER
    for container in template["spec"]["containers"]:
        if container["name"] == speaker:
            container["env"] = [*container["env"], {"name": str(WorkerVariable.REVISION), "value": revision}]
    return template, revision


def _pull_secrets(dd: DisaggDeployment) -> Obj:
    found = [{"name": secret.name} for secret in dd.spec.image_pull_secrets]
    return {"imagePullSecrets": found} if found else {}


def _patched(dd: DisaggDeployment, component: str, template: Obj, patch: PodTemplate | None, renderer: int) -> Obj:
    """Return a template with the patch of its resource merged into it."""
    if patch is None:
        return template
    merged: Obj = merge(template, patch.as_patch())
    parts.confine_further(merged["spec"], template["spec"], renderer)
    # A patch must not change the labels that selectors, disruption budgets and policies rely on.
    merged["metadata"]["labels"] = merged["metadata"]["labels"] | names.labels(dd.metadata.name, component)
    return merged


def _router_grace_s(dd: DisaggDeployment, images: Images) -> int:
    """Return how long routers may take to end: what they hold may wait for workers before it runs.

    A router adds the time for which it holds requests to its own deadline.
    """
    zero = dd.spec.scaling.scale_to_zero
    held_s = 0 if zero is None or images.renderer < ROUTERS_OUTLAST_HOLDS else zero.hold_seconds
    return _ROUTER_GRACE_S + held_s


def router_template(dd: DisaggDeployment, images: Images) -> Obj:
    """Return the pod template of the routers."""
    spec = dd.spec
    values = router_environment(dd) | {
        RouterVariable.HOST: "0.0.0.0",  # noqa: S104 (the router is the front door; its pod's network is its own)
        RouterVariable.PORT: str(ROUTER_PORT),
        RouterVariable.CLUSTER_KEY_FILE: parts.KEY_FILE,
        RouterVariable.MEMBERSHIP: "kubernetes",
        RouterVariable.NAMESPACE: dd.metadata.namespace,
        RouterVariable.DEPLOYMENT: dd.metadata.name,
    }
    volumes: list[Obj] = [parts.key_volume(dd), tmp_volume(renderer=images.renderer)]
    mounts: list[Obj] = [
        {"name": "cluster-key", "mountPath": parts.KEY_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a mount point inside the pod)
    ]
    if (keys := spec.router.api_keys_secret_ref) is not None:
        values[RouterVariable.API_KEYS_FILE] = f"{API_KEYS_MOUNT}/{keys.key}"
        volumes.append({"name": "api-keys", "secret": {"secretName": keys.name, "defaultMode": 0o440}})
        mounts.append({"name": "api-keys", "mountPath": API_KEYS_MOUNT, "readOnly": True})
    if (tracing := spec.observability.tracing) is not None:
        for name, variable, ref in (
            ("trace-headers", RouterVariable.TRACING_HEADERS_FILE, tracing.headers_secret_ref),
            ("trace-ca", RouterVariable.TRACING_CA_FILE, tracing.ca_secret_ref),
        ):
            if ref is not None:
                values[variable] = f"{TRACING_MOUNT}/{name}/{ref.key}"
                volumes.append({"name": name, "secret": {"secretName": ref.name, "defaultMode": 0o440}})
                mounts.append({"name": name, "mountPath": f"{TRACING_MOUNT}/{name}", "readOnly": True})
    container: Obj = {
        "name": "main",
        "image": spec.router.image or images.router,
        "imagePullPolicy": images.pull_policy,
        "env": parts.env(values),
        "ports": [{"name": "http", "containerPort": ROUTER_PORT, "protocol": "TCP"}],
        "resources": _ROUTER_RESOURCES if spec.router.resources is None else spec.router.resources.as_pod(),
        "readinessProbe": parts.probe(READY_PATH, ROUTER_PORT, 2, 2),
        "livenessProbe": parts.probe(HEALTH_PATH, ROUTER_PORT, 10, 6),
        "securityContext": parts.security(),
        **parts.last_words(images.renderer),
        "volumeMounts": mounts,
    }
    pod: dict[str, Any] = {
        "serviceAccountName": f"{dd.metadata.name}-router",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _router_grace_s(dd, images),
        "securityContext": parts.pod_security(),
        "topologySpreadConstraints": _spread(dd, "router"),
        "containers": [container],
        "volumes": volumes,
        **_pull_secrets(dd),
    }
    template: Obj = {"metadata": {"labels": names.labels(dd.metadata.name, "router")}, "spec": pod}
    template = _patched(dd, "router", template, spec.router.pod_template, images.renderer)
    parts.hear_the_signal(template, images.renderer)
    return template
