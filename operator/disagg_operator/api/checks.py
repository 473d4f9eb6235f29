"""PURE: what CEL checks at the API server, once more in Python, with the same words.

For resources that never met this CRD: stored before an upgrade, or given to `disagg local` as a file. tests/operator/api holds one
table of bad resources for both.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from disagg_operator.api.base import Model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from disagg_operator.api.network import Attachment, KvTransferSpec
    from disagg_operator.api.prometheus import PrometheusSpec
    from disagg_operator.api.v1alpha1 import DisaggDeployment, ModelSpec, PoolSpec

URI_PATTERN = (
    "^(hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._/-]*)?|file:///[A-Za-z0-9._/-]+)$"
)
NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
# Room for the longest child, the Secret NAME-cluster-key; names of Services and values of labels take 63 characters.
MAX_NAME = 63 - len("-cluster-key")
# Set from the pod or from fields of the spec: a second value would contradict what the operator (and its status) says.
RESERVED_ENV = (
    "DISAGG_BLOCK_SIZE_TOKENS", "DISAGG_CACHE_DIR", "DISAGG_CLUSTER_KEY_FILE", "DISAGG_DRAIN_TIMEOUT_S", "DISAGG_DTYPE", "DISAGG_HOST",
    "DISAGG_KV_CACHE_BYTES", "DISAGG_KV_HOST", "DISAGG_KV_INTERFACE", "DISAGG_KV_PORT", "DISAGG_MAX_BATCH_TOKENS",
    "DISAGG_MAX_MODEL_LEN", "DISAGG_MAX_RUNNING", "DISAGG_MODEL_MOUNT", "DISAGG_MODEL_NAME", "DISAGG_MODEL_URI", "DISAGG_POD_NAME",
    "DISAGG_POD_UID", "DISAGG_PORT", "DISAGG_REVISION", "DISAGG_ROLE", "DISAGG_TENSOR_PARALLEL", "DISAGG_THREADS",
    "HF_TOKEN",
)  # fmt: skip

BAD_URI = "uri must be hf://org/name, pvc://claim/path or file:///path"
DOTS = "uri must not contain .."
REVISION_NEEDS_HF = "revision is for hf:// models only"
TOKEN_NEEDS_HF = "authSecretRef is for hf:// models only"  # noqa: S105 - a message, no secret
RESERVED = "this variable is set by the operator; use the field of the spec"
REPLICAS_XOR = "set replicas or autoscaling, not both"
MIN_MAX = "minReplicas must not exceed maxReplicas"
BOTH_ZERO = "spec.prefill.replicas and spec.decode.replicas must both be 0 or both be above 0"
LONG_NAME = f"metadata.name must have at most {MAX_NAME} characters"
BAD_NAME = "metadata.name must be a DNS-1035 label: a-z first, then a-z, 0-9 and -"
MASTER_NEEDED = "master is required for macvlan, ipvlan and host-device"
RESOURCE_NEEDED = "resourceName is required for sriov and ib-sriov"
ADDRESS_XOR = "set either subnet or ipam: without an address no KV can be sent"
ATTACHMENT_XOR = "set either attachmentRef or attachment"
NOT_A_MAP = "must be a map"
NOT_NAMED = "must be a list of maps, each with a name"
RATIO = "min must not exceed max"
# CEL compares accelerators alone: quantities may be written in several ways.
FLIP_RULE = (
    "!has(self.scaling) || !has(self.scaling.roleFlip) || !self.scaling.roleFlip || "
    "(has(self.prefill.autoscaling) && has(self.decode.autoscaling) && "
    "has(self.prefill.accelerator) == has(self.decode.accelerator) && "
    "(!has(self.prefill.accelerator) || (self.prefill.accelerator.count == self.decode.accelerator.count && "
    "self.prefill.accelerator.resourceName == self.decode.accelerator.resourceName && "
    "has(self.prefill.accelerator.product) == has(self.decode.accelerator.product) && "
    "(!has(self.prefill.accelerator.product) || self.prefill.accelerator.product == self.decode.accelerator.product))))"
)
FLIP_EQUAL = "roleFlip needs autoscaling in both pools, and the same accelerator, resources and kvCacheSize in both"
_METRICS = " || ".join(
    f"(has(self.{r}.autoscaling) && has(self.{r}.autoscaling.metrics) && size(self.{r}.autoscaling.metrics) > 0)"
    for r in ("prefill", "decode")
)
QUEUE_RULE = (
    f"!has(self.scaling) || !(has(self.scaling.policy) ? self.scaling.policy == 'queue' : {_METRICS}) || "
    "(!(has(self.scaling.roleFlip) && self.scaling.roleFlip) && !has(self.scaling.ratio) && "
    "!(has(self.scaling.schedule) && size(self.scaling.schedule) > 0) && !has(self.scaling.maxGPUs))"
)
QUEUE_ONLY = "the policy queue (which metrics ask for) knows no ratio, schedule, maxGPUs or roleFlip; use predictive"
METRICS_RULE = f"!has(self.scaling) || !has(self.scaling.policy) || self.scaling.policy != 'predictive' || !({_METRICS})"
METRICS_ONLY = "metrics are for the policy queue; predictive goes by objectives"
# Everything but a host, a port and a path is refused: a password would be seen by all who may read the resource.
PROMETHEUS_URL = r"^https?://([A-Za-z0-9_][-._A-Za-z0-9]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[-._~%!$&()*+,;=:@A-Za-z0-9/]*)?$"
BAD_PROMETHEUS_URL = "url must be http(s)://host[:port][/path], without user, password, query or fragment"
AUTH_XOR = "set authorization or basicAuth, not both"
TLS_NEEDS_HTTPS = "tlsConfig needs an https:// url"
CA_XOR = "set either secret or configMap"
RESERVED_HEADERS = (
    "accept", "accept-encoding", "authorization", "connection", "content-encoding", "content-length", "content-type", "cookie", "expect",
    "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "user-agent", "www-authenticate",
)  # fmt: skip
RESERVED_HEADER = "this header is set by the client; credentials go into authorization or basicAuth"
RDMA_NEEDED = "transport rdma needs network.rdmaResource"


def problems(dd: DisaggDeployment) -> Iterator[str]:
    """`path: message` for every broken rule."""
    name = dd.metadata.name
    if len(name) > MAX_NAME:
        yield f"metadata.name: {LONG_NAME}"
    if not re.fullmatch(NAME_PATTERN, name):
        yield f"metadata.name: {BAD_NAME}"
    yield from _model(dd.spec.model)
    for variable in dd.spec.engine.env:
        if variable.name in RESERVED_ENV:
            yield f"spec.engine.env[{variable.name}].name: {RESERVED}"
    for role in ("prefill", "decode"):
        yield from _pool(f"spec.{role}", dd.spec.pool(role))
    if (dd.spec.prefill.replicas == 0) != (dd.spec.decode.replicas == 0):
        yield f"spec: {BOTH_ZERO}"
    yield from _scaling(dd)
    yield from _kv_transfer(dd.spec.kv_transfer)
    if dd.spec.observability.prometheus is not None:
        yield from _prometheus("spec.observability.prometheus", dd.spec.observability.prometheus)


def _model(model: ModelSpec) -> Iterator[str]:
    remote = model.uri.startswith("hf://")
    if not re.fullmatch(URI_PATTERN, model.uri):
        yield f"spec.model.uri: {BAD_URI}"
    if ".." in model.uri.split("/"):
        yield f"spec.model.uri: {DOTS}"
    if model.revision is not None and not remote:
        yield f"spec.model.revision: {REVISION_NEEDS_HF}"
    if model.auth_secret_ref is not None and not remote:
        yield f"spec.model.authSecretRef: {TOKEN_NEEDS_HF}"


def _pod_template(path: str, patch: dict[str, Any]) -> Iterator[str]:
    """Only the parts that rendering itself touches; the API server checks the rest when the pod is applied."""
    for section, names in (("metadata", ("labels", "annotations")), ("spec", ())):
        for name in names:
            if name in patch.get(section, {}) and not isinstance(patch[section][name], dict):
                yield f"{path}.{section}.{name}: {NOT_A_MAP}"
    for name in ("containers", "initContainers", "volumes"):
        items = patch.get("spec", {}).get(name, [])
        if not isinstance(items, list) or not all(isinstance(i, dict) and isinstance(i.get("name"), str) for i in items):
            yield f"{path}.spec.{name}: {NOT_NAMED}"
            continue
        for item in items:
            env = item.get("env", [])
            if not isinstance(env, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in env):
                yield f"{path}.spec.{name}[{item['name']}].env: {NOT_NAMED}"


def _pool(path: str, pool: PoolSpec) -> Iterator[str]:
    if pool.pod_template is not None:
        yield from _pod_template(f"{path}.podTemplate", pool.pod_template.as_patch())
    if pool.autoscaling is None:
        return
    if pool.replicas is not None:
        yield f"{path}.autoscaling: {REPLICAS_XOR}"
    if pool.autoscaling.min_replicas > pool.autoscaling.max_replicas:
        yield f"{path}.autoscaling.minReplicas: {MIN_MAX}"


def _scaling(dd: DisaggDeployment) -> Iterator[str]:
    scaling, pools = dd.spec.scaling, (dd.spec.prefill, dd.spec.decode)
    if scaling.ratio is not None and scaling.ratio.min > scaling.ratio.max:
        yield f"spec.scaling.ratio.min: {RATIO}"
    alike = all(getattr(pools[0], f) == getattr(pools[1], f) for f in ("accelerator", "resources", "kv_cache_size"))
    if scaling.role_flip and not (alike and all(p.autoscaling is not None for p in pools)):
        yield f"spec.scaling.roleFlip: {FLIP_EQUAL}"
    metrics = any(p.autoscaling is not None and p.autoscaling.metrics for p in pools)
    if scaling.policy == "predictive" and metrics:
        yield f"spec.scaling.policy: {METRICS_ONLY}"
    queue = scaling.policy == "queue" or (scaling.policy is None and metrics)
    if queue and (scaling.role_flip or scaling.ratio or scaling.schedule or scaling.max_gpus is not None):
        yield f"spec.scaling.policy: {QUEUE_ONLY}"


def _kv_transfer(kv: KvTransferSpec) -> Iterator[str]:
    network = kv.network
    if kv.transport == "rdma" and (network is None or network.rdma_resource is None):
        yield f"spec.kvTransfer.network: {RDMA_NEEDED}"
    if network is None:
        return
    if (network.attachment_ref is None) == (network.attachment is None):
        yield f"spec.kvTransfer.network.attachment: {ATTACHMENT_XOR}"
    if network.attachment is not None:
        yield from _attachment("spec.kvTransfer.network.attachment", network.attachment)


def _attachment(path: str, attachment: Attachment) -> Iterator[str]:
    virtual_function = attachment.type in ("sriov", "ib-sriov")
    if not virtual_function and attachment.master is None:
        yield f"{path}.master: {MASTER_NEEDED}"
    if virtual_function and attachment.resource_name is None:
        yield f"{path}.resourceName: {RESOURCE_NEEDED}"
    if (attachment.subnet is None) == (attachment.ipam is None):
        yield f"{path}.subnet: {ADDRESS_XOR}"


def _prometheus(path: str, prometheus: PrometheusSpec) -> Iterator[str]:
    if not re.fullmatch(PROMETHEUS_URL, prometheus.url):
        yield f"{path}.url: {BAD_PROMETHEUS_URL}"
    if prometheus.authorization is not None and prometheus.basic_auth is not None:
        yield f"{path}.basicAuth: {AUTH_XOR}"
    if prometheus.tls_config is not None:
        if not prometheus.url.startswith("https://"):
            yield f"{path}.tlsConfig: {TLS_NEEDS_HTTPS}"
        ca = prometheus.tls_config.ca
        if (ca.secret is None) == (ca.config_map is None):
            yield f"{path}.tlsConfig.ca: {CA_XOR}"
    for header in prometheus.headers:
        if header.name.lower() in RESERVED_HEADERS:
            yield f"{path}.headers[{header.name}].name: {RESERVED_HEADER}"


def unknown_fields(model: Model, raw: Any, path: str = "") -> Iterator[str]:
    """Paths in `raw` that the model has no field for. The API server refuses them; a file on a disk has no such guard."""
    fields = {(field.alias or name): name for name, field in type(model).model_fields.items()}
    for key, value in raw.items() if isinstance(raw, dict) else ():
        here = f"{path}.{key}" if path else str(key)
        if key not in fields:
            if type(model).model_config.get("extra") != "allow":
                yield here
            continue
        held = getattr(model, fields[key])
        if isinstance(held, Model):
            yield from unknown_fields(held, value, here)
        elif isinstance(held, list) and isinstance(value, list):
            for index, (item, raw_item) in enumerate(zip(held, value, strict=False)):
                if isinstance(item, Model):
                    yield from unknown_fields(item, raw_item, f"{here}[{index}]")
