"""PURE: The pod of a worker whose engine is a stock image: the engine, and an adapter beside it.

The container `main` holds the engine. The container `adapter` speaks the token protocol to routers
and the engine's HTTP interface inside the pod.

At the end of a pod the adapter gets SIGTERM at once and drains. The engine must live as long, so a
hook of `main` waits for the adapter's answer before the kubelet stops the engine; if the adapter is
gone, the request fails and the engine is stopped.
"""

from __future__ import annotations

import json

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.desired import attachments
from disagg_operator.desired import model_places as places
from disagg_operator.desired import pod_parts as parts
from disagg_operator.desired.environment import adapter_environment
from disagg_operator.desired.facts import Images
from disagg_operator.desired.scratch_space import cache_volume, tmp_volume
from disagg_operator.engines.contract import EngineProcess
from disagg_operator.engines.launch import LAUNCH, MESSAGE_FILE, PREPARE
from disagg_operator.engines.surroundings import CACHE_MOUNT, TMP_MOUNT
from disagg_operator.vocabulary import Obj, Objs
from disagg_wire.environment import AdapterVariable, WorkerVariable
from disagg_wire.fabric import ASKED, BYTES, UNKNOWN_CACHE_BYTES
from disagg_wire.ports import ENGINE_PORT, KV_PORT, WORKER_PORT
from disagg_wire.protocol import DRAINED_PATH, HEALTH_PATH, LIVE_PATH, READY_PATH

MODEL_FILES_MOUNT = "/var/run/disagg/model"
_ENGINE_KEY_MOUNT = "/var/run/disagg/engine"
_ENGINE_KEY_FILE = f"{_ENGINE_KEY_MOUNT}/key"
_FABRIC_MOUNT = "/var/run/disagg/fabric"
_FABRIC_FILE = f"{_FABRIC_MOUNT}/report.json"
# An engine that does not answer has nothing to end.
_STUCK_GRACE_S = 10


def adapted_pod(dd: DisaggDeployment, role: str, process: EngineProcess, images: Images) -> Obj:
    """Return the parts of a pod's spec that depend on its containers."""
    first = [_prepare(dd, process, images)] if places.image_folder(dd) or process.guarded else []
    context = parts.pod_security() if _restricted(dd) else _without_user(parts.pod_security())
    if process.sysctls:
        context["sysctls"] = [{"name": name, "value": value} for name, value in process.sysctls]
    return {
        "securityContext": context,
        **({"initContainers": first} if first else {}),
        "containers": [_engine(dd, role, process, images), _adapter(dd, role, process, images)],
        "volumes": _volumes(dd, role, process),
    }


def _restricted(dd: DisaggDeployment) -> bool:
    return dd.spec.engine.pod_security_level == "Restricted"


def _without_user(context: Obj) -> Obj:
    return {k: v for k, v in context.items() if k not in parts.user()}


def _engine_security(dd: DisaggDeployment, capabilities: list[str] | None = None) -> Obj:
    if _restricted(dd):
        return parts.security(capabilities)
    return {"allowPrivilegeEscalation": False} | ({"capabilities": {"add": capabilities}} if capabilities else {})


def _image(dd: DisaggDeployment, images: Images) -> str:
    found = dd.spec.engine.image or images.engines.get(dd.spec.engine.type) or dd.spec.engine.known.image
    assert found is not None, "an engine with an adapter has a default image"
    return found


def _small_resources() -> Obj:
    return {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}


def _prepare(dd: DisaggDeployment, process: EngineProcess, images: Images) -> Obj:
    """Return the container that runs first, in the engine's image.

    It copies the tokenizer out of the image, and makes the key that the engine and its adapter
    share, which never leaves the pod.
    """
    mounts: Objs = []
    if places.image_folder(dd):
        mounts.append({"name": "model-files", "mountPath": MODEL_FILES_MOUNT})
    if process.guarded:
        mounts.append({"name": "engine-key", "mountPath": _ENGINE_KEY_MOUNT})
    key = _ENGINE_KEY_FILE if process.guarded else ""
    return {
        "name": "prepare",
        "image": _image(dd, images),
        "imagePullPolicy": images.pull_policy,
        "command": ["python3", "-c", PREPARE, places.image_folder(dd), MODEL_FILES_MOUNT, key],
        "resources": _small_resources(),
        "securityContext": _engine_security(dd),
        **parts.last_words(),
        "volumeMounts": mounts,
    }


def _command(dd: DisaggDeployment, role: str, process: EngineProcess, images: Images) -> list[str]:
    """Return the command of the engine.

    A small program fills in what is known only inside the pod, such as the address on an attached
    network and the RDMA devices, and runs the engine.
    """
    transfer = dd.spec.kv_transfer
    links = attachments.links_of(dd, role, images.renderer)
    interfaces = ",".join(link.interface for link in links) if process.address_variables else ""
    # Where another transport is tolerated, UCX must be shown the interfaces, too.
    transport = "auto" if transfer.transport == "rdma" and not transfer.forbids_fallback else transfer.transport
    variables, pin = ",".join(process.address_variables), "1" if process.pins_devices else "0"
    key = _ENGINE_KEY_FILE if process.guarded else ""
    given = [MESSAGE_FILE, interfaces, transport, variables, pin, key, _asked(dd, role)]
    return ["python3", "-c", LAUNCH, *given, *process.command]


def _reports(dd: DisaggDeployment) -> bool:
    """Return whether the engine's container tells which RDMA devices it finds."""
    return dd.spec.kv_transfer.may_use_rdma


def _asked(dd: DisaggDeployment, role: str) -> str:
    """Return what the report on the network is to be about, as JSON, or "" without a report.

    The adapter has none of the devices, so the engine's container looks for them.
    """
    if not _reports(dd):
        return ""
    size = dd.spec.pool(role).kv_cache_size
    needed = UNKNOWN_CACHE_BYTES if size is None else quantity_bytes(size)
    return json.dumps({ASKED: attachments.device_count(dd, role), BYTES: needed, "file": _FABRIC_FILE})


def _report_mounts(dd: DisaggDeployment, *, written: bool) -> Objs:
    mount = {"name": "fabric", "mountPath": _FABRIC_MOUNT, **({} if written else {"readOnly": True})}
    return [mount] if _reports(dd) else []


def _engine(dd: DisaggDeployment, role: str, process: EngineProcess, images: Images) -> Obj:
    spec = dd.spec
    values = {**process.environment} | {e.name: e.value for e in spec.engine.env}
    env = parts.env(values)
    if spec.kv_transfer.network is None:
        env += [parts.env_field(name, "status.podIP") for name in process.address_variables]
    if process.guarded:
        env.append(parts.env_field(AdapterVariable.HOST, "status.podIP"))
    if (secret := spec.model.auth_secret_ref) is not None:
        reference = {"name": secret.name, "key": secret.key}
        env.append({"name": str(WorkerVariable.HF_TOKEN), "valueFrom": {"secretKeyRef": reference}})
    mounts: Objs = [
        {"name": "tmp", "mountPath": TMP_MOUNT},
        {"name": "cache", "mountPath": CACHE_MOUNT},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 (a mount point inside the pod)
        *places.claim_mounts(dd),
        *_report_mounts(dd, written=True),
    ]
    if process.guarded:
        mounts.append({"name": "engine-key", "mountPath": _ENGINE_KEY_MOUNT, "readOnly": True})
    stuck = {"terminationGracePeriodSeconds": _STUCK_GRACE_S}
    return {
        "name": "main",
        "image": _image(dd, images),
        "imagePullPolicy": images.pull_policy,
        "command": _command(dd, role, process, images),
        "env": env,
        "ports": [{"name": n, "containerPort": p, "protocol": "TCP"} for n, p in process.ports.items()],
        "resources": parts.worker_resources(dd, role, images.renderer),
        # The adapter knows whether the engine computes; the engine's own health page does not.
        "startupProbe": parts.probe(READY_PATH, WORKER_PORT, parts.STARTUP_PERIOD_S, parts.STARTUP_FAILURES),
        "readinessProbe": parts.probe(READY_PATH, WORKER_PORT, 2, 2),
        "livenessProbe": parts.probe(HEALTH_PATH, WORKER_PORT, 10, 6) | stuck,
        "lifecycle": {"preStop": {"httpGet": {"path": DRAINED_PATH, "port": WORKER_PORT, "scheme": "HTTP"}}},
        "securityContext": _engine_security(dd, parts.lock_capabilities(dd, images.renderer)) | parts.lock_user(dd),
        **parts.last_words(),
        "volumeMounts": mounts,
    }


def _adapter(dd: DisaggDeployment, role: str, process: EngineProcess, images: Images) -> Obj:
    values = adapter_environment(dd, role, process.role) | {
        AdapterVariable.PORT: str(WORKER_PORT),
        AdapterVariable.KV_PORT: str(KV_PORT),
        AdapterVariable.CLUSTER_KEY_FILE: parts.KEY_FILE,
        AdapterVariable.ENGINE_PORT: str(ENGINE_PORT),
    }
    if (network := dd.spec.kv_transfer.network) is not None:
        values[AdapterVariable.KV_INTERFACE] = network.interface
    if _reports(dd):
        values[AdapterVariable.FABRIC_REPORT] = _FABRIC_FILE
    mounts: Objs = [
        {"name": "cluster-key", "mountPath": parts.KEY_MOUNT, "readOnly": True},
        {"name": "adapter-tmp", "mountPath": TMP_MOUNT},
        *_report_mounts(dd, written=False),
    ]
    if process.guarded:
        values[AdapterVariable.ENGINE_KEY_FILE] = _ENGINE_KEY_FILE
        mounts.append({"name": "engine-key", "mountPath": _ENGINE_KEY_MOUNT, "readOnly": True})
    else:
        values[AdapterVariable.ENGINE_HOST] = "127.0.0.1"
    values[AdapterVariable.MODEL_FILES], files = _model_files(dd)
    env = [
        *parts.env(values),
        parts.env_field(AdapterVariable.HOST, "status.podIP"),
        parts.env_field(AdapterVariable.POD_NAME, "metadata.name"),
        parts.env_field(AdapterVariable.POD_UID, "metadata.uid"),
    ]
    if process.guarded:
        env.append(parts.env_field(AdapterVariable.ENGINE_HOST, "status.podIP"))
    return {
        "name": parts.ADAPTER,
        "image": images.adapter,
        "imagePullPolicy": images.pull_policy,
        "env": env,
        "ports": [
            {"name": "http", "containerPort": WORKER_PORT, "protocol": "TCP"},
            {"name": "kv", "containerPort": KV_PORT, "protocol": "TCP"},
        ],
        "resources": _small_resources(),
        "readinessProbe": parts.probe(READY_PATH, WORKER_PORT, 2, 2),
        "livenessProbe": parts.probe(LIVE_PATH, WORKER_PORT, 10, 6),
        "securityContext": parts.security() | ({} if _restricted(dd) else parts.user()),
        **parts.last_words(),
        "volumeMounts": [*mounts, files],
    }


def _model_files(dd: DisaggDeployment) -> tuple[str, Obj]:
    """Return the folder in which the adapter finds the tokenizer, and the mount of its volume.

    A model from the hub is fetched by the engine, into the hub's cache: the adapter finds the
    snapshot there.
    """
    if places.image_folder(dd):
        return MODEL_FILES_MOUNT, {"name": "model-files", "mountPath": MODEL_FILES_MOUNT, "readOnly": True}
    if dd.spec.model.uri.startswith("hf://"):
        return f"{CACHE_MOUNT}/hub", {"name": "cache", "mountPath": CACHE_MOUNT, "readOnly": True}
    return places.place_of(dd, dd.spec.model.uri), places.claim_mounts(dd)[0]


def _volumes(dd: DisaggDeployment, role: str, process: EngineProcess) -> Objs:
    out: Objs = [
        parts.key_volume(dd),
        tmp_volume(),
        tmp_volume("adapter-tmp"),
        cache_volume(dd, role),
        # The 64 MiB of a pod's own /dev/shm are too few for the processes of an engine.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        *places.claim_volumes(dd),
    ]
    if places.image_folder(dd):
        out.append({"name": "model-files", "emptyDir": {"sizeLimit": "512Mi"}})
    if process.guarded:
        out.append({"name": "engine-key", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
    if _reports(dd):
        out.append({"name": "fabric", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
    return out
