"""Tests of the pods whose engine is a stock image with an adapter beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.operator.api.resources import Obj, of
from tests.operator.desired.facts import FACTS
from tests.operator.desired.golden import SPECS

from disagg_adapter.settings import from_environment
from disagg_operator.api import parse
from disagg_operator.desired import render
from disagg_operator.engines import BY_NAME
from disagg_wire.environment import AdapterVariable

ADAPTED = [name for name, engine in BY_NAME.items() if engine.process is not None]
NETWORK = {"attachmentRef": {"name": "fabric"}, "interface": "rdma0"}


def _objects(engine: str, /, **spec: Any) -> dict[tuple[str, str], Obj]:
    return {(o["kind"], o["metadata"]["name"]): o for o in render(parse(of(engine, **spec)), FACTS)}


def _pod(engine: str, role: str = "prefill", /, **spec: Any) -> Obj:
    pod: Obj = _objects(engine, **spec)["Deployment", f"chat-{role}"]["spec"]["template"]["spec"]
    return pod


def _all(pod: Obj) -> dict[str, Obj]:
    return {c["name"]: c for c in [*pod.get("initContainers", []), *pod["containers"]]}


def _env(container: Obj) -> dict[str, str]:
    return {e["name"]: e.get("value", "10.0.0.1") for e in container["env"]}


def _mounts(container: Obj) -> dict[str, tuple[str, bool]]:
    return {m["mountPath"]: (m["name"], m.get("readOnly", False)) for m in container["volumeMounts"]}


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("engine", ADAPTED)
def test_pods_satisfy_the_restricted_pod_security_standard(engine: str, role: str) -> None:
    pod = _pod(engine, role)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    # The only sysctl is one that the standard admits.
    sysctls = {s["name"] for s in pod["securityContext"].get("sysctls", [])}
    assert sysctls <= {"net.ipv4.ip_local_port_range"}
    for container in _all(pod).values():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    allowed = {"secret", "emptyDir", "persistentVolumeClaim"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])


@pytest.mark.parametrize("engine", ADAPTED)
def test_the_level_baseline_frees_the_engine_and_not_its_adapter(engine: str) -> None:
    pod = _pod(engine, engine={"podSecurityLevel": "Baseline"})
    assert "runAsUser" not in pod["securityContext"]
    assert pod["securityContext"]["fsGroup"] == 65532
    containers = _all(pod)
    assert containers["main"]["securityContext"] == {"allowPrivilegeEscalation": False}
    adapter = containers["adapter"]["securityContext"]
    assert adapter["runAsNonRoot"]
    assert adapter["readOnlyRootFilesystem"]


@pytest.mark.parametrize("engine", ADAPTED)
@pytest.mark.parametrize("uri", ["file:///models/m", "pvc://models/m", "hf://org/m"])
def test_the_adapter_finds_the_tokenizer_and_can_not_change_it(engine: str, uri: str) -> None:
    containers = _all(_pod(engine, model={"uri": uri}))
    folder = _env(containers["adapter"])["DISAGG_MODEL_FILES"]
    mounts = _mounts(containers["adapter"])
    (found,) = (held for path, held in mounts.items() if folder.startswith(path))
    assert found[1]
    if uri.startswith("file"):
        assert "/models/m" in containers["prepare"]["command"]
        assert found[0] in {name for name, _ in _mounts(containers["prepare"]).values()}
    else:  # the engine reads, or fetches, the same files
        assert found[0] in {name for name, _ in _mounts(containers["main"]).values()}


@pytest.mark.parametrize("engine", ADAPTED)
def test_the_probes_and_the_end_of_the_engine_are_the_adapters(engine: str) -> None:
    containers = _all(_pod(engine))
    main, adapter = containers["main"], containers["adapter"]
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert (main[probe]["httpGet"]["path"], main[probe]["httpGet"]["port"]) == (path, 8000)
    assert main["lifecycle"]["preStop"]["httpGet"]["path"] == "/drained"
    assert adapter["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert "httpGet" not in adapter["lifecycle"]["preStop"]  # it does not wait for its own drain
    # A hung engine isn't given the time of a drain.
    assert main["livenessProbe"]["terminationGracePeriodSeconds"] < 60


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_adapter_understands_every_variable_that_it_is_given(spec: Obj, role: str) -> None:
    adapter = _all(_pod(spec["engine"]["type"], role, **spec))["adapter"]
    env = _env(adapter)
    assert set(env) <= set(AdapterVariable)
    settings = from_environment(env)
    assert settings.engine == spec["engine"]["type"]
    assert settings.port == 8000
    assert settings.revision
    assert settings.experimental is spec["engine"].get("experimental", False)


def test_the_operator_sets_just_the_listed_variables_of_adapters() -> None:
    rendered: set[str] = set()
    for spec in SPECS.values():
        rendered |= set(_env(_all(_pod(spec["engine"]["type"], **spec))["adapter"]))
    # KV uses the address of the interface or of the pod, and SGLang's port is the default.
    assert set(AdapterVariable) - rendered == {AdapterVariable.KV_HOST, AdapterVariable.BOOTSTRAP_PORT}


def test_the_adapters_know_names_ratio_and_lease() -> None:
    spec: Obj = {
        "model": {"adapters": [{"name": "law", "uri": "file:///law"}]},
        "engine": {"leaseSeconds": 90},
        "prefill": {"parallelism": {"tensor": 4}, "accelerator": {"count": 4}},
    }
    settings = from_environment(_env(_all(_pod("vllm", "decode", **spec))["adapter"]))
    assert (settings.lora_adapters, settings.tensor_ratio, settings.lease_s) == (["law"], "4:1", 90)


def test_only_an_engine_on_the_pods_address_shares_a_key_with_its_adapter() -> None:
    guarded, free = _all(_pod("sglang")), _all(_pod("sglang", "decode"))
    key = _env(guarded["adapter"])["DISAGG_ENGINE_KEY_FILE"]
    assert key in guarded["prepare"]["command"]
    assert key in guarded["main"]["command"]
    assert {_mounts(guarded[name])["/var/run/disagg/engine"][1] for name in ("main", "adapter")} == {True}
    assert "DISAGG_ENGINE_KEY_FILE" not in _env(free["adapter"])
    assert _env(free["adapter"])["DISAGG_ENGINE_HOST"] == "127.0.0.1"
    assert "engine-key" not in {v["name"] for v in _pod("sglang", "decode")["volumes"]}


def test_the_engine_learns_the_pods_address_or_that_of_its_network() -> None:
    plain = _all(_pod("vllm"))["main"]
    assert plain["command"][:2] == ["python3", "-c"]
    assert plain["command"][3:13] == [
        *("/dev/termination-log", "", "auto", "VLLM_NIXL_SIDE_CHANNEL_HOST", "1", "", ""),
        *("python3", "-m", "vllm.entrypoints.cli.main"),
    ]
    assert {"fieldPath": "status.podIP", "apiVersion": "v1"} in [
        e["valueFrom"]["fieldRef"] for e in plain["env"] if e["name"] == "VLLM_NIXL_SIDE_CHANNEL_HOST"
    ]
    attached = _all(_pod("vllm", kvTransfer={"network": NETWORK}))["main"]
    assert attached["command"][4:10] == ["rdma0", "auto", "VLLM_NIXL_SIDE_CHANNEL_HOST", "1", "", ""]
    assert "VLLM_NIXL_SIDE_CHANNEL_HOST" not in _env(attached)
    alone = _all(_pod("lmdeploy", kvTransfer={"network": NETWORK}))["main"]
    assert alone["command"][4:10] == ["", "auto", "", "0", "", ""]


def test_the_engine_looks_for_the_devices_that_it_has_alone_and_the_adapter_reads_what_it_found() -> None:
    network = {**NETWORK, "rdmaResource": {"name": "rdma/hca", "per": "Accelerator"}}
    eight: Obj = {"accelerator": {"count": 8}, "parallelism": {"tensor": 8}, "kvCacheSize": "64Gi"}
    pod = _pod("vllm", kvTransfer={"transport": "rdma", "network": network}, prefill=eight, decode=eight)
    containers = _all(pod)
    interfaces, transport, *_, asked = containers["main"]["command"][4:10]
    assert interfaces == ",".join(f"rdma{n}" for n in range(8))
    assert transport == "rdma"
    file = "/var/run/disagg/fabric/report.json"
    assert json.loads(asked) == {"asked": 8, "bytes": 64 << 30, "file": file}
    assert _env(containers["adapter"])["DISAGG_FABRIC_REPORT"] == file
    assert {"name": "fabric", "mountPath": "/var/run/disagg/fabric"} in containers["main"]["volumeMounts"]
    mount = {"name": "fabric", "mountPath": "/var/run/disagg/fabric", "readOnly": True}
    assert mount in containers["adapter"]["volumeMounts"]
    assert {"name": "fabric", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}} in pod["volumes"]
    assert containers["main"]["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/hca": "8"}
    tcp = _pod("vllm", kvTransfer={"transport": "tcp", "network": network})
    assert "fabric" not in {volume["name"] for volume in tcp["volumes"]}
    tolerant: Obj = {"transport": "rdma", "fallback": "Warn", "network": network}
    assert _all(_pod("vllm", kvTransfer=tolerant))["main"]["command"][5] == "auto"


def test_image_environment_and_devices_are_the_engines() -> None:
    spec: Obj = {
        "engine": {"image": "mine:1", "env": [{"name": "UCX_TLS", "value": "tcp"}]},
        "model": {"uri": "hf://o/m", "authSecretRef": {"name": "hf"}},
        "kvTransfer": {"transport": "tcp"},
    }
    containers = _all(_pod("vllm", **spec))
    assert containers["main"]["image"] == "mine:1"
    assert containers["adapter"]["image"] == FACTS.images.adapter
    assert [e["value"] for e in containers["main"]["env"] if e["name"] == "UCX_TLS"] == ["tcp"]
    assert [e["name"] for e in containers["main"]["env"]].count("HF_TOKEN") == 1
    assert "HF_TOKEN" not in _env(containers["adapter"])
    assert containers["main"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "nvidia.com/gpu" not in containers["adapter"]["resources"]["limits"]
    for container in containers.values():
        names = [e["name"] for e in container["env"]]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("level", ["Restricted", "Baseline"])
def test_only_the_engine_as_root_gets_the_capability_to_lock_memory(level: str) -> None:
    """Without root it has no effect: the kernel looks at the effective capabilities."""
    network = {**NETWORK, "rdmaResource": {"name": "rdma/hca"}}
    for mode in ("Unprivileged", "Root"):
        transfer = {"transport": "rdma", "network": network | {"rdmaMode": mode}}
        containers = _all(_pod("vllm", engine={"podSecurityLevel": level}, kvTransfer=transfer))
        main = containers["main"]["securityContext"]
        assert main.get("capabilities", {}).get("add") == (["IPC_LOCK"] if mode == "Root" else None)
        assert (main.get("runAsUser") == 0) == (mode == "Root")
        adapter = containers["adapter"]["securityContext"]
        assert "add" not in adapter["capabilities"]
        assert adapter.get("runAsUser") != 0


@pytest.mark.parametrize("engine", ADAPTED)
def test_peers_never_reach_the_engines_own_interface(engine: str) -> None:
    policy = _objects(engine)["NetworkPolicy", "chat-workers"]["spec"]
    for rule in (*policy["ingress"], *policy["egress"]):
        for ports in rule["ports"]:
            assert not ports["port"] <= 8100 <= ports.get("endPort", ports["port"])


def test_a_patch_reaches_the_engine_by_its_name_and_the_revision_the_adapter() -> None:
    patch: Obj = {"podTemplate": {"spec": {"containers": [{"name": "main", "env": [{"name": "A", "value": "1"}]}]}}}
    template = _objects("vllm", prefill=patch)["Deployment", "chat-prefill"]["spec"]["template"]
    containers = _all(template["spec"])
    assert _env(containers["main"])["A"] == "1"
    revision = template["metadata"]["labels"]["disagg.dev/revision"]
    assert _env(containers["adapter"])["DISAGG_REVISION"] == revision
    assert "DISAGG_REVISION" not in _env(containers["main"])
