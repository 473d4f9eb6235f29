"""Tests of the pod templates: their security, environment, devices, network and volumes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.operator.api.resources import Obj, good
from tests.operator.desired.facts import FACTS

from disagg_operator.api import InvalidResource, parse
from disagg_operator.desired import Images, render, renderer
from disagg_operator.desired.local_process import router_process, worker_process
from disagg_operator.desired.pod_templates import router_template, worker_template
from disagg_router.settings import Settings as RouterSettings
from disagg_router.settings import from_environment as router_settings
from disagg_worker.settings import Settings as WorkerSettings
from disagg_worker.settings import from_environment

COMPONENTS = ("prefill", "decode", "router")
NETWORK = {"attachmentRef": {"name": "fabric", "namespace": "nets"}, "interface": "rdma0"}


def _template(component: str, **spec: Any) -> Obj:
    name = f"chat-{component}"
    objects = render(parse(good(**spec)), FACTS)
    template: Obj = next(o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == name)["spec"][
        "template"
    ]
    return template


def _main(component: str, **spec: Any) -> Obj:
    return next(c for c in _template(component, **spec)["spec"]["containers"] if c["name"] == "main")


def _env(component: str, **spec: Any) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in _main(component, **spec)["env"]}


def _beside(context: Any, kind: str = "containers", version: int = renderer.CURRENT) -> Any:
    """Return the security context of a container that a podTemplate adds."""
    side = {"name": "side", "image": "s"} | ({} if context == "none" else {"securityContext": context})
    resource = parse(good(decode={"podTemplate": {"spec": {kind: [side]}}}))
    pod = worker_template(resource, "decode", Images(renderer=version))[0]["spec"]
    return next(c for c in pod[kind] if c["name"] == "side").get("securityContext")


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_further_containers_are_confined_unless_they_ask_for_more(kind: str) -> None:
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    contexts: tuple[Any, ...] = ("none", None, {}, {"capabilities": None}, {"capabilities": {}})
    for context in contexts:
        assert _beside(context, kind) == confined
    assert _beside({"runAsUser": 7}, kind) == confined | {"runAsUser": 7}
    asking: tuple[Any, ...] = ({"privileged": True}, {"capabilities": {"add": ["NET_ADMIN"]}})
    for asked in asking:
        assert _beside(asked, kind) == asked
    assert _beside("none", kind, version=1) is None


@pytest.mark.parametrize("component", COMPONENTS)
def test_pods_satisfy_the_restricted_pod_security_standard(component: str) -> None:
    pod = _template(component)["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert not any(key in pod for key in ("hostNetwork", "hostPID", "hostIPC"))
    allowed = {"secret", "emptyDir", "persistentVolumeClaim"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])


def test_a_worker_that_is_not_root_gets_the_device_and_no_capability() -> None:
    """IPC_LOCK in the bounding set is not effective without root, and no restricted pod has it."""
    network = {**NETWORK, "rdmaResource": {"name": "rdma/hca", "quantity": 2}}
    main = _main("decode", kvTransfer={"transport": "rdma", "network": network})
    assert main["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    root = _main("decode", kvTransfer={"transport": "rdma", "network": network | {"rdmaMode": "Root"}})
    assert root["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert (root["securityContext"]["runAsUser"], root["securityContext"]["runAsNonRoot"]) == (0, False)
    assert _env("decode", kvTransfer={"network": network})["DISAGG_RDMA_DEVICES"] == "2"
    for transfer in ({"network": NETWORK}, {"transport": "tcp", "network": network}):
        assert "DISAGG_RDMA_DEVICES" not in _env("decode", kvTransfer=transfer)
    assert main["resources"]["limits"] == {"rdma/hca": "2"}
    assert main["resources"]["requests"]["rdma/hca"] == "2"
    tcp = _main("decode", kvTransfer={"transport": "tcp", "network": NETWORK})
    assert "add" not in tcp["securityContext"]["capabilities"]


@pytest.mark.parametrize(
    ("rdma", "prefill", "decode"),
    [
        ({}, "1", "1"), ({"quantity": 2}, "2", "2"), ({"per": "Accelerator"}, "8", "4"),
        ({"per": "Accelerator", "quantity": 2}, "16", "8"),
    ],
)  # fmt: skip
def test_a_worker_gets_its_rdma_devices_for_itself_or_for_each_of_its_gpus(
    rdma: dict[str, object], prefill: str, decode: str
) -> None:
    network = {**NETWORK, "rdmaResource": {"name": "rdma/hca", **rdma}}
    spec = {"kvTransfer": {"transport": "rdma", "network": network}}
    pools = {"prefill": {"accelerator": {"count": 8}}, "decode": {"accelerator": {"count": 4}}}
    for role, wanted in (("prefill", prefill), ("decode", decode)):
        resources = _main(role, **spec, **pools)["resources"]
        assert resources["limits"]["rdma/hca"] == resources["requests"]["rdma/hca"] == wanted
    assert _main("decode", **spec)["resources"]["limits"]["rdma/hca"] == str(rdma.get("quantity", 1))  # without a GPU


def test_a_virtual_function_that_is_the_rdma_device_too_is_asked_for_as_often_as_the_device() -> None:
    attachment = {"type": "sriov", "resourceName": "vendor/vf", "subnet": "10.9.0.0/24"}
    network = {"attachment": attachment, "rdmaResource": {"name": "vendor/vf", "quantity": 2}}
    assert _main("decode", kvTransfer={"transport": "rdma", "network": network})["resources"]["limits"] == {
        "vendor/vf": "2"
    }


@pytest.mark.parametrize(
    ("accelerator", "selector", "taints"),
    [
        ({"product": "H100"}, {"nvidia.com/gpu.product": "H100"}, ["nvidia.com/gpu"]),
        (
            {"product": "MI300X", "resourceName": "amd.com/gpu"},
            {"amd.com/gpu.product-name": "MI300X"}, ["amd.com/gpu"],
        ),
        (
            {"product": "Max_1550", "resourceName": "gpu.intel.com/i915"},
            {"gpu.intel.com/product": "Max_1550"}, ["gpu.intel.com/i915"],
        ),
        (
            {"product": "HL-325", "productLabel": "habana.ai/product", "resourceName": "habana.ai/gaudi"},
            {"habana.ai/product": "HL-325"}, ["habana.ai/gaudi"],
        ),
        ({"resourceName": "nvidia.com/mig-1g.10gb"}, None, ["nvidia.com/mig-1g.10gb", "nvidia.com/gpu"]),
    ],
)  # fmt: skip
def test_nodes_are_chosen_by_the_words_of_the_accelerators_maker(
    accelerator: dict[str, str], selector: dict[str, str] | None, taints: list[str]
) -> None:
    pod = _template("decode", decode={"accelerator": {"count": 1, **accelerator}})["spec"]
    assert pod.get("nodeSelector") == selector
    assert [t["key"] for t in pod["tolerations"]] == taints


def test_decode_is_placed_near_prefill_of_any_revision_where_that_is_asked_for() -> None:
    term = {
        "topologyKey": "fabric.topograph.run/tier-1",
        "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "prefill", "disagg.dev/deployment": "chat"}},
    }
    near = {"topologyKey": "fabric.topograph.run/tier-1"}
    pod = _template("decode", kvTransfer={"coLocation": near})["spec"]
    assert pod["affinity"]["podAffinity"] == {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
    }
    required = _template("decode", kvTransfer={"coLocation": near | {"mode": "Required"}})["spec"]
    assert required["affinity"]["podAffinity"] == {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    assert "affinity" not in _template("prefill", kvTransfer={"coLocation": near})["spec"]
    assert "affinity" not in _template("decode")["spec"]


def test_ranks_get_a_gpu_each_and_shared_memory() -> None:
    split = {"decode": {"accelerator": {"count": 4}, "parallelism": {"tensor": 4}}}
    assert _env("decode", **split)["DISAGG_TENSOR_PARALLEL"] == "4"
    assert _main("decode", **split)["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert {"name": "shm", "mountPath": "/dev/shm"} in _main("decode", **split)["volumeMounts"]
    volume = next(v for v in _template("decode", **split)["spec"]["volumes"] if v["name"] == "shm")
    assert volume["emptyDir"]["medium"] == "Memory"
    assert "DISAGG_TENSOR_PARALLEL" not in _env("prefill", **split)
    assert all(v["name"] != "shm" for v in _template("prefill", **split)["spec"]["volumes"])


def test_prefill_spares_decode_by_the_objective_where_one_is_set() -> None:
    name = "DISAGG_DECODE_STEP_TARGET_S"
    objectives = {"tpotSeconds": {"p99": 0.05}}
    assert from_environment({**_env("prefill", objectives=objectives), "DISAGG_HOST": "x"}).decode_step_target_s == 0.05
    assert name not in _env("decode", objectives=objectives)  # the objective never changes the decode pods
    for unset in ({}, {"ttftSeconds": {"p99": 0.5}}, {"tpotSeconds": {"p99": 0.06}}):
        assert _template("prefill", objectives=unset) == _template("prefill")  # a default changes no pod at all
    flipping = {
        "scaling": {"roleFlip": True},
        **{r: {"autoscaling": {"maxReplicas": 2}} for r in ("prefill", "decode")},
    }
    assert _env("decode", objectives=objectives, **flipping)[name] == "0.05"  # the worker may become prefill
    with pytest.raises(InvalidResource, match=name):  # only the objective can set it
        _env("prefill", objectives=objectives, engine={"env": [{"name": name, "value": "0.2"}]})


def test_an_attached_network_is_in_the_annotation_and_in_the_environment() -> None:
    template = _template("prefill", kvTransfer={"network": NETWORK})
    (network,) = json.loads(template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"])
    assert network == {"name": "fabric", "namespace": "nets", "interface": "rdma0"}
    assert _env("prefill", kvTransfer={"network": NETWORK})["DISAGG_KV_INTERFACE"] == "rdma0"
    assert "DISAGG_KV_INTERFACE" not in _env("prefill")


def test_an_accelerator_is_asked_for_pinned_and_tolerated() -> None:
    pool = {"accelerator": {"product": "NVIDIA-L40S", "count": 2}, "resources": {"limits": {"memory": "8Gi"}}}
    pod = _template("prefill", prefill=pool)["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["containers"][0]["resources"] == {
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
        "requests": {"nvidia.com/gpu": "2", "cpu": "2"},
    }


def test_no_accelerator_and_count_0_ask_for_nothing() -> None:
    for pool in ({}, {"accelerator": {"count": 0}}):
        pod = _template("prefill", prefill=pool)["spec"]
        assert pod["containers"][0]["resources"] == {"requests": {"cpu": "100m", "memory": "512Mi"}}
        assert "tolerations" not in pod


def test_a_claim_is_mounted_read_only() -> None:
    pod = _template("decode", model={"uri": "pvc://models/llama"})["spec"]
    volume = next(v for v in pod["volumes"] if v["name"] == "model")
    mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "model")
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert (mount["mountPath"], mount["readOnly"]) == (_env("decode")["DISAGG_MODEL_MOUNT"], True)


def test_the_token_of_a_hub_reaches_the_workers_as_a_reference_only() -> None:
    main = _main("decode", model={"uri": "hf://org/m", "revision": "v1", "authSecretRef": {"name": "hf"}})
    token = next(e for e in main["env"] if e["name"] == "HF_TOKEN")
    assert token == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}
    assert _env("decode", model={"uri": "hf://org/m", "revision": "v1"})["DISAGG_MODEL_URI"] == "hf://org/m@v1"


def test_the_grace_period_outlasts_the_drain() -> None:
    pod = _template("decode", decode={"drain": {"timeoutSeconds": 100}})["spec"]
    assert pod["terminationGracePeriodSeconds"] > 100
    assert _env("decode", decode={"drain": {"timeoutSeconds": 100}})["DISAGG_DRAIN_TIMEOUT_S"] == "100"


def test_the_grace_period_of_routers_outlasts_what_they_may_hold() -> None:
    """As do their own deadlines, which they derive from the variable."""
    zero: dict[str, Any] = {"scaling": {"scaleToZero": {"holdSeconds": 900}}}
    nothing: dict[str, Any] = {}
    for spec, version, expected in (
        (nothing, renderer.CURRENT, 120),
        (zero, renderer.CURRENT, 1020),
        (zero, renderer.ROUTERS_OUTLAST_HOLDS - 1, 120),
    ):
        pod = router_template(parse(good(**spec)), Images(renderer=version))["spec"]
        assert pod["terminationGracePeriodSeconds"] == expected
    settings = router_settings(_env("router", **zero))
    assert settings.hold_s < settings.grace_s + settings.drain_s < 1020


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_variable_is_set_twice(component: str) -> None:
    spec = {
        "engine": {"env": [{"name": "A", "value": "1"}]},
        "model": {"uri": "hf://o/m", "authSecretRef": {"name": "t"}},
    }
    names = [e["name"] for e in _main(component, **spec)["env"]]
    assert len(names) == len(set(names))


def test_the_worker_understands_every_variable_that_it_is_given() -> None:
    spec = {
        "engine": {"maxModelLen": 4096, "dtype": "bfloat16"},
        "decode": {"kvCacheSize": "1Gi", "maxRunningRequests": 7},
        "kvTransfer": {"network": NETWORK},
    }
    env = {name: value or "x" for name, value in _env("decode", **spec).items()}
    known = {f"DISAGG_{name.upper()}" for name in WorkerSettings.model_fields}
    assert {name for name in env if name.startswith("DISAGG_")} <= known
    settings = from_environment(env)
    assert (settings.role, settings.max_running, settings.kv_cache_bytes, settings.max_model_len) == (
        "decode",
        7,
        1 << 30,
        4096,
    )


def test_the_router_understands_every_variable_that_it_is_given() -> None:
    env = _env("router", router={"apiKeysSecretRef": {"name": "keys", "key": "all"}})
    known = {f"DISAGG_{name.upper()}" for name in RouterSettings.model_fields}
    assert set(env) <= known
    assert env["DISAGG_API_KEYS_FILE"].endswith("/all")


def test_the_router_finds_what_it_needs_for_the_collector_where_its_secrets_are_mounted() -> None:
    secrets = {"headersSecretRef": {"name": "otlp"}, "caSecretRef": {"name": "authority", "key": "all.pem"}}
    tracing = {"endpoint": "https://c:4318", **secrets}
    template = router_template(parse(good(observability={"tracing": tracing})), Images())
    (container,) = template["spec"]["containers"]
    env = {e["name"]: e.get("value") for e in container["env"]}
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v.get("secret", {}).get("secretName") for v in template["spec"]["volumes"]}
    assert env["DISAGG_TRACING_HEADERS_FILE"] == mounts["trace-headers"] + "/headers"
    assert env["DISAGG_TRACING_CA_FILE"] == mounts["trace-ca"] + "/all.pem"
    assert (volumes["trace-headers"], volumes["trace-ca"]) == ("otlp", "authority")
    bare = router_template(parse(good(observability={"tracing": {"endpoint": "https://c:4318"}})), Images())
    assert not {v["name"] for v in bare["spec"]["volumes"]} & {"trace-headers", "trace-ca"}


@pytest.mark.parametrize(
    ("queue", "order"), [({}, "EarliestDeadline"), ({"order": "FirstComeFirstServed"}, "FirstComeFirstServed")]
)
def test_the_router_is_told_who_goes_first_wherever_it_runs(queue: dict[str, str], order: str) -> None:
    dd = parse(good(router={"queue": queue}))
    pod = _env("router", router={"queue": queue})
    for environment in (pod, router_process(dd, 18080, "/tmp/key", "/tmp/members.json").environment):
        assert environment["DISAGG_QUEUE_ORDER"] == order


def test_local_processes_get_the_environment_of_the_pods() -> None:
    dd = parse(good(decode={"kvCacheSize": "1Gi"}))
    process = worker_process(dd, "decode", 0, 18000, "/tmp/key")
    pod = _env("decode", decode={"kvCacheSize": "1Gi"})
    differ = {name for name, value in process.environment.items() if pod.get(name) != value}
    assert differ <= {"DISAGG_HOST", "DISAGG_PORT", "DISAGG_KV_PORT", "DISAGG_POD_NAME", "DISAGG_CLUSTER_KEY_FILE"}
    router = router_process(dd, 18080, "/tmp/key", "/tmp/members.json")
    assert router.environment["DISAGG_MEMBERSHIP"] == "file:///tmp/members.json"


def test_the_worker_knows_its_revision_and_a_container_beside_it_does_not() -> None:
    patch = {"metadata": {"labels": {"team": "a"}}, "spec": {"containers": [{"name": "mesh", "image": "m"}]}}
    template = _template("decode", decode={"podTemplate": patch})
    by_name = {
        c["name"]: {e["name"]: e["value"] for e in c.get("env", []) if "value" in e}
        for c in template["spec"]["containers"]
    }
    labels = template["metadata"]["labels"]
    assert by_name["main"]["DISAGG_REVISION"] == labels["disagg.dev/revision"]
    assert by_name["mesh"] == {}
    assert labels["team"] == "a"
    assert labels["disagg.dev/revision"] != _template("decode")["metadata"]["labels"]["disagg.dev/revision"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pod_template_is_merged_into_workers_and_routers_and_changes_no_label_of_ours(component: str) -> None:
    patch = {
        "metadata": {"labels": {"team": "ml", "app.kubernetes.io/component": "x"}, "annotations": {"a": "b"}},
        "spec": {
            "tolerations": [{"key": "edge", "operator": "Exists"}],
            "priorityClassName": "serving",
            "containers": [{"name": "main", "resources": {"requests": {"cpu": "3"}}}],
        },
    }
    found = _template(component, **{component: {"podTemplate": patch}})
    assert found["metadata"]["labels"].items() >= {"team": "ml", "app.kubernetes.io/component": component}.items()
    assert found["metadata"]["annotations"] == {"a": "b"}
    assert (found["spec"]["tolerations"], found["spec"]["priorityClassName"]) == (
        patch["spec"]["tolerations"],  # type: ignore[index]
        "serving",
    )
    (main,) = found["spec"]["containers"]
    assert main["resources"]["requests"]["cpu"] == "3"
    assert "memory" in main["resources"]["requests"]


def test_a_pod_template_of_routers_is_checked_like_that_of_workers() -> None:
    with pytest.raises(InvalidResource, match=r"spec.router.podTemplate.spec.containers"):
        parse(good(router={"podTemplate": {"spec": {"containers": [{"image": "x"}]}}}))


@pytest.mark.parametrize("component", COMPONENTS)
def test_all_images_are_pulled_with_the_secrets_of_the_resource(component: str) -> None:
    secrets = [{"name": "one"}, {"name": "two"}]
    assert _template(component, imagePullSecrets=secrets)["spec"]["imagePullSecrets"] == secrets
    assert "imagePullSecrets" not in _template(component)["spec"]
