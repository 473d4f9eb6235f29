"""Resources for tests: a small valid one, and one table of invalid ones for both checks.

The checks are CEL at the API server and `parse` in Python.
"""

from __future__ import annotations

import copy
from typing import Any

Obj = dict[str, Any]


def patched(role: str, **spec: Any) -> Obj:
    """Return a resource with a pool whose podTemplate has this spec."""
    pool: Obj = {role: {"podTemplate": {"spec": spec}}}
    return good(**pool)


def good(name: str = "chat", **spec: Any) -> Obj:
    """Return a valid resource with `spec` merged over it."""
    base: Obj = {"model": {"uri": "file:///models/m"}, "prefill": {}, "decode": {}}
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggDeployment",
        "metadata": {"name": name, "namespace": "default", "uid": "11111111-2222-3333-4444-555555555555"},
        "spec": _merged(base, spec),
    }


def watched(url: str = "https://host:9090", **spec: Any) -> Obj:
    """Return a resource with a Prometheus."""
    return good(observability={"prometheus": {"url": url, **spec}})


def of(engine: str, /, **spec: Any) -> Obj:
    """Return a resource of an engine, with a GPU for each worker."""
    pools = {role: {"accelerator": {"count": 1}} for role in ("prefill", "decode")}
    return good(**_merged({"engine": {"type": engine}, **pools}, spec))


def _merged(base: Obj, patch: Obj) -> Obj:
    out = copy.deepcopy(base)
    for key, value in patch.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


_MACVLAN = {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}
_RAIL = {"name": "rail0", "resourceName": "nvidia.com/rail0"}
_SCALE = {"minReplicas": 1, "maxReplicas": 2}

# Error -> (the resource, words of the API server's refusal, words of Python's refusal).
BAD: dict[str, tuple[Obj, str, str]] = {
    "replicas and autoscaling together": (
        good(prefill={"replicas": 2, "autoscaling": _SCALE}), "spec.prefill.autoscaling", "spec.prefill.autoscaling",
    ),
    "minReplicas above maxReplicas": (
        good(decode={"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}),
        "minReplicas must not exceed maxReplicas", "spec.decode.autoscaling.minReplicas",
    ),
    "an upstream with a password": (
        good(router={"upstream": {"url": "http://me:pw@v", "percent": 5}}), "upstream.url", "spec.router.upstream.url",
    ),
    "a CA without TLS": (good(observability={"tracing": {"endpoint": "http://c", "caSecretRef": {"name": "x"}}}),
        "needs an https:// endpoint", "spec.observability.tracing.caSecretRef"),
    "an upstream for more than all requests": (
        good(router={"upstream": {"url": "http://vllm:8000", "percent": 101}}),
        "spec.router.upstream.percent", "spec.router.upstream.percent",
    ),
    "a canary with Recreate": (
        good(rollout={"canary": {}, "strategy": "Recreate"}), "needs the strategy RollingUpdate", "spec.rollout.canary",
    ),
    "a canary with most of the requests": (
        good(rollout={"canary": {"weight": 51}}), "spec.rollout.canary.weight", "spec.rollout.canary.weight",
    ),
    "a surge that is no number of workers": (good(rollout={"maxSurge": "1.5"}), "maxSurge", "spec.rollout.maxSurge"),
    "only one pool at 0": (good(prefill={"replicas": 0}), "must both be 0", "must both be 0"),
    "transport rdma without a device": (
        good(kvTransfer={"transport": "rdma", "network": {"attachment": _MACVLAN}}), "rdmaResource", "rdmaResource",
    ),
    "a product label that is none": (
        good(prefill={"accelerator": {"product": "X", "productLabel": "not a label"}}),
        "productLabel", "spec.prefill.accelerator.productLabel",
    ),
    "a name that leaves no room for the children": (good("a" * 52), "at most 51 characters", "at most 51 characters"),
    "a name that starts with a digit": (good("1chat"), "DNS-1035", "DNS-1035"),
    "a uri without a scheme": (good(model={"uri": "models/m"}), "uri must be hf://", "spec.model.uri"),
    "a uri of another scheme": (good(model={"uri": "http://host/m"}), "uri must be hf://", "spec.model.uri"),
    "a uri that climbs": (good(model={"uri": "pvc://claim/../../etc"}), "must not contain ..", "must not contain .."),
    "a revision of a local model": (good(model={"revision": "main"}), "revision is for hf://", "spec.model.revision"),
    "a token for a local model": (
        good(model={"authSecretRef": {"name": "t"}}),
        "authSecretRef is for hf://", "spec.model.authSecretRef",
    ),
    "a variable that the operator sets": (
        good(engine={"env": [{"name": "DISAGG_CLUSTER_KEY_FILE", "value": "/tmp/k"}]}),
        "set by the operator", "spec.engine.env[DISAGG_CLUSTER_KEY_FILE]",
    ),
    "an engine that this version lacks": (good(engine={"type": "tgi"}), "spec.engine.type", "spec.engine.type"),
    "replicas that are a word": (good(prefill={"replicas": "two"}), "spec.prefill.replicas", "spec.prefill.replicas"),
    "negative replicas": (good(prefill={"replicas": -1}), "spec.prefill.replicas", "spec.prefill.replicas"),
    "maxReplicas of a million": (
        good(prefill={"autoscaling": {"maxReplicas": 10**6}}), "maxReplicas", "spec.prefill.autoscaling.maxReplicas",
    ),
    "autoscaling without maxReplicas": (
        good(prefill={"autoscaling": {}}),
        "maxReplicas", "spec.prefill.autoscaling.maxReplicas",
    ),
    "a target of 0": (
        good(prefill={"autoscaling": _SCALE | {"metrics": [{"type": "QueueDepth", "target": {"averageValue": "0"}}]}}),
        "averageValue", "averageValue",
    ),
    "a target that is no number": (
        good(prefill={"autoscaling": _SCALE | {"metrics": [{"target": {"averageValue": "NaN"}}]}}),
        "averageValue", "averageValue",
    ),
    "a signal that this version lacks": (
        good(prefill={"autoscaling": _SCALE | {"metrics": [{"type": "TTFT", "target": {"averageValue": 1}}]}}),
        "metrics[0].type", "type",
    ),
    "a cache size that is no quantity": (
        good(decode={"kvCacheSize": "lots"}),
        "spec.decode.kvCacheSize", "spec.decode.kvCacheSize",
    ),
    "resources that are no quantity": (
        good(decode={"resources": {"limits": {"cpu": "two"}}}), "limits.cpu", "spec.decode.resources.limits.cpu",
    ),
    "no model": (
        {**good(), "spec": {"prefill": {}, "decode": {}}}, "spec.model", "spec.model",
    ),
    "an order that this version lacks": (
        good(router={"queue": {"order": "Random"}}), "spec.router.queue.order", "spec.router.queue.order",
    ),
    "a port out of range": (
        good(router={"service": {"port": 70000}}),
        "spec.router.service.port", "spec.router.service.port",
    ),
    "a Prometheus that is no URL": (
        good(observability={"prometheus": {"url": "ftp://host/x"}}),
        "spec.observability.prometheus.url", "spec.observability.prometheus.url",
    ),
    "a Prometheus with a password in its URL": (
        watched("https://me:hunter2@host/x"),
        "url must be http(s)://host", "spec.observability.prometheus.url: url must be",
    ),
    "a Prometheus whose URL two parsers may read in two ways": (
        watched("https://good\\@evil/x"),
        "url must be http(s)://host", "spec.observability.prometheus.url: url must be",
    ),
    "a Prometheus with a query in its URL": (
        watched("https://host/x?a=b"), "url must be http(s)://host", "spec.observability.prometheus.url: url must be",
    ),
    "a token and a password": (
        watched(
            authorization={"credentials": {"name": "a"}},
            basicAuth={"username": {"name": "a"}, "password": {"name": "a"}},
        ), "authorization or basicAuth, not both", "spec.observability.prometheus.basicAuth",
    ),
    "a password without a user": (
        watched(basicAuth={"password": {"name": "a"}}),
        "basicAuth.username", "spec.observability.prometheus.basicAuth.username",
    ),
    "a token of another namespace": (
        watched(authorization={"credentials": {"name": "other/a"}}), "authorization.credentials.name",
        "spec.observability.prometheus.authorization.credentials.name",
    ),
    "an authority for a server without TLS": (
        watched("http://host", tlsConfig={"ca": {"secret": {"name": "a"}}}), "tlsConfig needs an https:// url",
        "spec.observability.prometheus.tlsConfig",
    ),
    "an authority from two places": (
        watched(tlsConfig={"ca": {"secret": {"name": "a"}, "configMap": {"name": "a"}}}), "either secret or configMap",
        "spec.observability.prometheus.tlsConfig.ca",
    ),
    "an authority from nowhere": (
        watched(tlsConfig={"ca": {}}), "either secret or configMap", "spec.observability.prometheus.tlsConfig.ca",
    ),
    "a token in a header for all to see": (
        watched(headers=[{"name": "authorization", "value": "Bearer x"}]),
        "credentials go into authorization or basicAuth",
        "spec.observability.prometheus.headers[authorization].name",
    ),
    "a header that ends the headers": (
        watched(headers=[{"name": "X-Scope-OrgID", "value": "a\r\nHost: b"}]), "headers[0].value",
        "spec.observability.prometheus.headers.0.value",
    ),
    "an objective of no time": (
        good(objectives={"ttftSeconds": {"p99": 0}}),
        "spec.objectives.ttftSeconds.p99", "spec.objectives.ttftSeconds.p99",
    ),
    "an objective that is no number": (
        good(objectives={"tpotSeconds": {"p99": "fast"}}),
        "spec.objectives.tpotSeconds.p99", "spec.objectives.tpotSeconds.p99",
    ),
    "a policy that is unknown": (good(scaling={"policy": "guess"}), "spec.scaling.policy", "spec.scaling.policy"),
    "a factor below a half": (
        good(scaling={"overProvisioning": 0.1}),
        "spec.scaling.overProvisioning", "spec.scaling.overProvisioning",
    ),
    "a ratio upside down": (
        good(scaling={"ratio": {"min": 3, "max": 2}}),
        "min must not exceed max", "spec.scaling.ratio.min",
    ),
    "a peak at no time of day": (
        good(scaling={"schedule": [{"name": "noon", "from": "25:00", "to": "26:00"}]}), "spec.scaling.schedule[0].from",
        "spec.scaling.schedule.0.from",
    ),
    "a role flip of pools that are not alike": (
        good(
            prefill={"autoscaling": _SCALE, "accelerator": {"count": 1}},
            decode={"autoscaling": _SCALE},
            scaling={"roleFlip": True},
        ), "roleFlip needs autoscaling in both pools", "spec.scaling.roleFlip",
    ),
    "a role flip of a fixed pool": (
        good(prefill={"autoscaling": _SCALE}, scaling={"roleFlip": True}),
        "roleFlip needs autoscaling in both pools", "spec.scaling.roleFlip",
    ),
    "a GPU budget for the policy queue": (
        good(scaling={"policy": "queue", "maxGPUs": 8}), "the policy queue", "spec.scaling.policy",
    ),
    "a schedule where metrics ask for the policy queue": (
        good(
            prefill={"autoscaling": _SCALE | {"metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}]}},
            scaling={"schedule": [{"name": "noon", "from": "11:00", "to": "13:00"}]},
        ), "the policy queue", "spec.scaling.policy",
    ),
    "metrics for the predictive policy": (
        good(
            prefill={"autoscaling": _SCALE | {"metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}]}},
            scaling={"policy": "predictive"},
        ), "metrics are for the policy queue", "spec.scaling.policy",
    ),
}  # fmt: skip

_ADAPTERS = {"adapters": [{"name": "law", "uri": "file:///law"}]}
_EXACT: Obj = {"engine": {"numerics": "Exact"}}
_GPU: Obj = {"accelerator": {"count": 1}}
_ON_HOST: Obj = {"engine": {"prefixCaching": {"hostMemory": "1Gi"}}}
_FLIP: Obj = {"prefill": {"autoscaling": _SCALE}, "decode": {"autoscaling": _SCALE}, "scaling": {"roleFlip": True}}
_LIMITS: tuple[tuple[str, str, str, Obj], ...] = (
    *(("builtin", f"has no {p}.args", f"{p}.args", {p: {"args": ["--x"]}}) for p in ("engine", "prefill", "decode")),
    ("builtin", "has no engine.leaseSeconds", "engine.leaseSeconds", {"engine": {"leaseSeconds": 60}}),
    ("builtin", "has no model.adapters", "model.adapters", {"model": _ADAPTERS}),
    ("builtin", "knows no engine.experimental", "engine.experimental", {"engine": {"experimental": True}}),
    *(("builtin", "has engine.numerics E", "engine.numerics", {**_EXACT, p: _GPU}) for p in ("prefill", "decode")),
    *(
        (engine, *row)
        for engine in ("vllm", "sglang", "lmdeploy")
        for row in (
            ("takes only none", "engine.quantization", {"engine": {"quantization": "int8"}}),
            ("takes only lru", "engine.prefixCaching.eviction", {"engine": {"prefixCaching": {"eviction": "fifo"}}}),
            ("takes only auto", "kvTransfer.transport", {"kvTransfer": {"transport": "nvlink"}}),
            ("has no engine.prefixCaching.hostMemory", "engine.prefixCaching.hostMemory", _ON_HOST),
            ("has no kvTransfer.integrity", "kvTransfer.integrity", {"kvTransfer": {"integrity": "mac"}}),
            ("has no engine.numerics", "engine.numerics", {"engine": {"numerics": "Fast"}}),
            ("has no router.local", "router.localPrefillMaxTokens", {"router": {"localPrefillMaxTokens": 32}}),
            ("knows no scaling.roleFlip", "scaling.roleFlip", _FLIP),
        )
    ),
    *(
        (engine, *row)
        for engine in ("sglang", "lmdeploy")
        for role in ("prefill", "decode")
        for row in (
            (f"has no {role}.kvCacheSize", f"{role}.kvCacheSize", {role: {"kvCacheSize": "1Gi"}}),
            (f"computes on GPUs alone: set {role}", f"{role}.accelerator", {role: {"accelerator": {"count": 0}}}),
        )
    ),
    ("vllm", "knows no engine.experimental", "engine.experimental", {"engine": {"experimental": True}}),
    ("vllm", "wants prefill.maxBatch", "prefill.maxBatchTokens", {"prefill": {"maxBatchTokens": 32}}),
    ("vllm", "wants decode.maxBatch", "decode.maxBatchTokens", {"decode": {"maxRunningRequests": 4096}}),
    (
        "vllm", "wants decode.parallelism", "decode.parallelism.tensor",
        {"prefill": {"parallelism": {"tensor": 3}}, "decode": {"parallelism": {"tensor": 2}}},
    ),
    ("sglang", "knows no engine.experimental", "engine.experimental", {"engine": {"experimental": True}}),
    ("sglang", "wants prefill.maxBatch", "prefill.maxBatchTokens", {"prefill": {"maxBatchTokens": 2050}}),
    ("sglang", "wants decode.maxBatch", "decode.maxBatchTokens", {"decode": {"maxBatchTokens": 2050}}),
    ("sglang", "wants decode.parallel", "decode.parallelism.tensor", {"decode": {"parallelism": {"tensor": 2}}}),
    ("lmdeploy", "takes only auto", "engine.dtype", {"engine": {"dtype": "float32"}}),
    ("lmdeploy", "has no engine.leaseSeconds", "engine.leaseSeconds", {"engine": {"leaseSeconds": 60}}),
    ("lmdeploy", "has no model.adapters", "model.adapters", {"model": _ADAPTERS}),
    (
        "lmdeploy", "wants decode.parallelism", "decode.parallelism.tensor",
        {"engine": {"experimental": True}, "decode": {"parallelism": {"tensor": 2}}},
    ),
    ("lmdeploy", "hands KV over by rdma", "engine.experimental", {"engine": {"experimental": True}}),
)  # fmt: skip
# Networks: what is wrong, and the words of the API server and of the parser.
_NETWORKS: dict[str, tuple[Obj, str, str]] = {
    "attachment and attachmentRef together": (
        {"attachment": _MACVLAN, "attachmentRef": {"name": "n"}}, "spec.kvTransfer.network.attachment", ".attachment",
    ),
    "a network without attachment": ({"interface": "net1"}, "either attachmentRef", "or attachment"),
    "rails beside an attachment": ({"attachmentRef": {"name": "n"}, "rails": [_RAIL]}, "or rails", "or rails"),
    "rails with another device": ({"rails": [_RAIL], "rdmaResource": {"name": "a/b"}}, "rails name", "rails name"),
    "claims beside rails": ({"rails": [_RAIL], "devicesBy": "Claim"}, "devicesBy Claim stands", "devicesBy Claim"),
    "a rail without devices": ({"rails": [{"name": "rail0"}]}, "resourceName", "resourceName"),
    "root without RDMA": ({"attachmentRef": {"name": "n"}, "rdmaMode": "Root"}, "rdmaMode", "rdmaMode"),
    "host-device without a device": (
        {"attachment": {"type": "host-device", "subnet": "10.9.0.0/24"}}, "master or resourceName", ".master",
    ),
    "macvlan without a master": (
        {"attachment": {"type": "macvlan", "subnet": "10.9.0.0/24"}}, "master is required", ".master",
    ),
    "sriov without a resource": (
        {"attachment": {"type": "sriov", "subnet": "10.9.0.0/24"}}, "resourceName is required", ".resourceName",
    ),
    "an attachment without addresses": ({"attachment": _MACVLAN | {"subnet": None}}, "subnet or", "subnet or ipam"),
}  # fmt: skip
BAD |= {name: (good(kvTransfer={"network": part}), said, told) for name, (part, said, told) in _NETWORKS.items()}
BAD |= {
    f"{engine} {words}, {path}": (of(engine, **spec), f"engine.type {engine} {words}", f"spec.{path}: ")
    for engine, words, path, spec in _LIMITS
}
BAD |= {
    f"a variable that {engine} gets from the operator": (
        of(engine, engine={"env": [{"name": "HOME", "value": "/"}]}), f"env of engine.type {engine}", "spec.engine.env",
    )
    for engine in ("vllm", "sglang", "lmdeploy")
}  # fmt: skip
BAD |= {
    "an adapter from nowhere": (
        of("vllm", model={"adapters": [{"name": "a", "uri": "s3://bucket"}]}),
        "uri must be hf://", "spec.model.adapters[a].uri",
    ),
    "an adapter outside of its claim": (
        of("vllm", model={"adapters": [{"name": "a", "uri": "pvc://c/../d"}]}),
        "uri must not contain ..", "spec.model.adapters[a].uri",
    ),
    "an adapter whose name would end its argument": (
        of("vllm", model={"adapters": [{"name": "a=b", "uri": "file:///a"}]}),
        "spec.model.adapters[0].name", "spec.model.adapters.0.name",
    ),
    "a model whose name is an option": (
        of("vllm", model={"name": "--host=0.0.0.0"}), "spec.model.name", "spec.model.name",
    ),
    "a model whose name is a variable of the pod": (
        of("vllm", model={"name": "m-$(HF_TOKEN)"}), "spec.model.name", "spec.model.name",
    ),
    "a lease of no time": (of("vllm", engine={"leaseSeconds": 1}), "spec.engine.leaseSeconds", "leaseSeconds"),
    "an empty argument": (of("vllm", engine={"args": [""]}), "spec.engine.args[0]", "spec.engine.args.0"),
}  # fmt: skip

# Refused by the strict field validation of the API server, and by parse_file for a file.
UNKNOWN: dict[str, tuple[Obj, str]] = {
    "a misspelt pool field": (good(prefill={"replica": 2}), "spec.prefill.replica"),
    "a field of a later version": (good(notYet={"a": 1}), "spec.notYet"),
    "a misspelt field in a list": (
        good(prefill={"autoscaling": _SCALE | {"metrics": [{"kind": "x", "target": {"averageValue": 1}}]}}),
        "spec.prefill.autoscaling.metrics[0].kind",
    ),
    "a part of a pod template outside of metadata and spec": (
        good(decode={"podTemplate": {"containers": []}}), "spec.decode.podTemplate.containers",
    ),
}  # fmt: skip

# Only Python checks the content of a pod template, the arguments, and the names of adapters.
BAD_TEMPLATES: dict[str, tuple[Obj, str]] = {
    "containers that are no list": (patched("prefill", containers="x"), "spec.prefill.podTemplate.spec.containers"),
    "containers that are removed": (patched("prefill", containers=None), "spec.prefill.podTemplate.spec.containers"),
    "a container without a name": (patched("decode", containers=[{}]), "spec.decode.podTemplate.spec.containers"),
    "labels that are removed": (
        good(decode={"podTemplate": {"metadata": {"labels": None}}}),
        "spec.decode.podTemplate.metadata.labels",
    ),
    "annotations that are a text": (
        good(decode={"podTemplate": {"metadata": {"annotations": "a"}}}),
        "spec.decode.podTemplate.metadata.annotations",
    ),
    "a second container whose variables are a map": (
        patched("decode", containers=[{"name": "main", "env": []}, {"name": "b", "env": {}}]),
        "spec.decode.podTemplate.spec.containers[b].env",
    ),
    "a variable without a name": (
        patched("decode", containers=[{"name": "main", "env": [{"value": "x"}]}]),
        "spec.decode.podTemplate.spec.containers[main].env",
    ),
    "a subnet that is none": (
        good(kvTransfer={"network": {"attachment": _MACVLAN | {"subnet": "10.300.0.0/24"}}}),
        "spec.kvTransfer.network.attachment.subnet: 10.300.0.0/24 is no subnet",
    ),
    "the interface that every pod has": (
        good(kvTransfer={"network": {"attachment": _MACVLAN, "interface": "eth0"}}),
        "spec.kvTransfer.network.interface: eth0 is an interface of every pod",
    ),
    "an argument of the operator": (of("vllm", engine={"args": ["--port=1"]}), "spec.engine.args[0]: --port:"),
    "an abbreviation of one in a pool": (
        of("vllm", decode={"args": ["--seed", "1", "--kv-transfer", "{}"]}), "spec.decode.args[2]: --kv-transfer:",
    ),
    "an argument of prefill with its own field": (
        of("sglang", prefill={"args": ["--dtype", "half"]}), "set by the operator; use engine.dtype",
    ),
    "an adapter with the name of the model": (
        of("vllm", model={"name": "m", "adapters": [{"name": "m", "uri": "file:///a"}]}),
        "spec.model.adapters[m].name: is the name of the model itself",
    ),
}  # fmt: skip
