"""The generated CRDs on a real API server: rules, defaults, /scale, pruning, printer columns."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.operator.api.resources import BAD, BAD_TEMPLATES, UNKNOWN, Obj, good, of, watched
from tests.operator.api.test_rules import RULES

from disagg_operator.api import DisaggDeployment, InvalidResource, parse
from disagg_operator.api.admission import refusals
from disagg_wire.engines import ENGINES

pytestmark = pytest.mark.apiserver

REPO = Path(__file__).resolve().parents[3]
DEPLOYMENTS = "/apis/disagg.dev/v1alpha1/namespaces/default/disaggdeployments"
POOLS = "/apis/disagg.dev/v1alpha1/namespaces/default/disaggpools"
STRICT = {"fieldValidation": "Strict", "dryRun": "All"}


def _create(crd_client: httpx.Client, resource: Obj) -> httpx.Response:
    metadata = {k: v for k, v in resource["metadata"].items() if k != "uid"}
    return crd_client.post(DEPLOYMENTS, params=STRICT, json={**resource, "metadata": metadata})


@pytest.mark.parametrize("case", BAD)
def test_a_bad_resource_is_refused_by_name(crd_client: httpx.Client, case: str) -> None:
    resource, words, _ = BAD[case]
    answer = _create(crd_client, resource)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["message"]


def _some(**fields: Any) -> st.SearchStrategy[Obj]:
    """Generate any selection of these fields, each with one of its values."""
    strategies = {name: st.sampled_from(v) if isinstance(v, list) else v for name, v in fields.items()}
    return st.fixed_dictionaries({}, optional=strategies)


def _with(name: str, values: list[str], **fields: Any) -> st.SearchStrategy[Obj]:
    """Generate a required field with one of its values, and any selection of others."""
    return st.tuples(st.sampled_from(values), _some(**fields)).map(lambda pair: {name: pair[0], **pair[1]})


_METRIC = {"type": "QueueDepth", "target": {"averageValue": 4}}
_REF = {"name": "a"}
_BOUNDS: list[Obj] = [{"minReplicas": low, "maxReplicas": 2} for low in (1, 3)]
_METRICS: list[Obj] = [{}, {"metrics": []}, {"metrics": [_METRIC]}]
_POOL = _some(replicas=[0, 1], autoscaling=_BOUNDS)
_SCALED_POOL = _some(
    autoscaling=[_BOUNDS[0] | metrics for metrics in _METRICS],
    accelerator=[{}, {"count": 2}, {"product": "A100"}, {"product": "H100"}, {"resourceName": "amd.com/gpu"}],
)
_URIS = [
    "hf://a/b", "hf://a/b/c", "pvc://c/../d", "pvc://c/..", "pvc://c/..d", "file:///m", "file:///m\n", "s3://a/b",
]  # fmt: skip
_URLS = ["https://host", "http://host:1/p", "https://me:x@host", "https://[::1]:9/a", "https://host\n"]
_NETWORK = _some(
    attachmentRef=[_REF],
    devicesBy=["Plugin", "Claim"],
    rails=[[], [{"name": "a", "resourceName": "rdma/a"}]],
    rdmaMode=["Root"],
    rdmaResource=[{"name": "rdma/a"}],
    attachment=_with(
        "type",
        ["macvlan", "sriov"],
        master=["eth1"],
        resourceName=["a/b"],
        subnet=["10.9.0.0/24"],
        ipam=[{}, {"type": "dhcp"}],
    ),
)
_SCALING = _some(
    policy=["predictive", "queue"],
    maxGPUs=[8],
    ratio=[{}, {"min": 2}, {"min": 3, "max": 2}],
    schedule=[[], [{"name": "noon", "from": "11:00", "to": "13:00"}]],
    roleFlip=[True, False],
)
_PROMETHEUS = _with(
    "url",
    _URLS,
    authorization=[{"credentials": _REF}],
    basicAuth=[{"username": _REF, "password": _REF}],
    tlsConfig=[{"ca": ca} for ca in ({}, {"secret": _REF}, {"secret": _REF, "configMap": _REF})],
    headers=[[{"name": "Authorization", "value": "x"}], [{"name": "X-A", "value": "x"}], []],
)
_SCALED = {"prefill": _SCALED_POOL, "decode": _SCALED_POOL, "scaling": _SCALING}
_ENV = [[{"name": "HF_TOKEN"}], [{"name": "DISAGG_QUANTIZATION"}], [{"name": "TZ"}], [{"name": "HOME"}]]
_ENGINE_POOL = _some(
    args=[[], ["--seed", "1"]],
    accelerator=[{"count": 0}, {"count": 2}],
    parallelism=[{"tensor": n} for n in (2, 3)],
    maxRunningRequests=[4000],
    maxBatchTokens=[2050, 4096],
    kvCacheSize=["1Gi"],
)
_ENGINE = _some(
    env=_ENV,
    args=[[], ["--seed", "1"]],
    dtype=["auto", "float32", "bfloat16"],
    quantization=["none", "int8", "fp8"],
    prefixCaching=[{}, {"eviction": "fifo"}, {"hostMemory": "1Gi"}],
    leaseSeconds=[60],
    experimental=[True, False],
)
_NAMES = st.sampled_from(["chat", "c", "1chat", "a" * 51, "a" * 52])
_RESOURCES: dict[str, st.SearchStrategy[Obj]] = {
    "names": _NAMES.map(good),
    "models": _with("uri", _URIS, revision=["main"], authSecretRef=[_REF]).map(lambda model: good(model=model)),
    "pools": st.builds(lambda **pools: good(**pools), prefill=_POOL, decode=_POOL),
    "scaling": st.builds(lambda **parts: good(**parts), **_SCALED),
    "engines": st.builds(
        lambda name, engine, prefill, decode, rest: of(name, engine=engine, prefill=prefill, decode=decode, **rest),
        st.sampled_from(ENGINES),
        _ENGINE,
        _ENGINE_POOL,
        _ENGINE_POOL,
        _some(
            model=[
                {"adapters": [{"name": "a", "uri": uri} for uri in uris]} for uris in ([], ["hf://a/b"], ["x://abc"])
            ],
            kvTransfer=[{"transport": "tcp"}],
        ),
    ),
    "networks": _some(transport=["rdma", "tcp"], network=_NETWORK).map(lambda transfer: good(kvTransfer=transfer)),
    "servers": _PROMETHEUS.map(lambda server: good(observability={"prometheus": server})),
}


@pytest.mark.parametrize("part", _RESOURCES)
@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_api_server_refuses_by_the_rules_that_the_parser_finds_broken(
    crd_client: httpx.Client,
    part: str,
    data: st.DataObject,
) -> None:
    resource = data.draw(_RESOURCES[part])
    answer = _create(crd_client, resource)
    assert answer.status_code in (201, 422), answer.text
    told = answer.json()["message"] if answer.status_code == 422 else ""
    found = {refusal.partition(": ")[2] for refusal in refusals(DisaggDeployment.model_validate(resource))}
    assert {rule.message for _, rule in RULES if rule.message in told} == found, told


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_field_is_refused_by_name(crd_client: httpx.Client, case: str) -> None:
    resource, path = UNKNOWN[case]
    answer = _create(crd_client, resource)
    assert answer.status_code == 400, answer.text
    assert f'unknown field "{path}"' in answer.json()["message"]


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_what_only_python_sees_gets_past_the_api_server(crd_client: httpx.Client, case: str) -> None:
    """This is why `parse` checks it: if this fails, the schema can do the check instead."""
    assert _create(crd_client, BAD_TEMPLATES[case][0]).status_code == 201


@pytest.mark.parametrize("path", sorted((REPO / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_accepted_and_its_defaults_are_those_of_the_models(
    crd_client: httpx.Client, path: Path
) -> None:
    for resource in yaml.safe_load_all(path.read_text()):
        if resource["kind"] != "DisaggDeployment":
            continue
        answer = _create(crd_client, resource)
        assert answer.status_code == 201, answer.text
        assert parse(answer.json()).spec == parse(resource).spec


def _pool() -> Obj:
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggPool",
        "metadata": {"name": "chat-decode"},
        "spec": {"deployment": "chat", "role": "decode", "replicas": 1},
    }


def test_kubectl_scale_and_an_hpa_can_read_and_write_a_pool(crd_client: httpx.Client) -> None:
    assert crd_client.post(POOLS, json=_pool()).status_code == 201
    merge = {"Content-Type": "application/merge-patch+json"}
    status: dict[str, Any] = {"status": {"replicas": 2, "readyReplicas": 1, "selector": "a=b", "observedGeneration": 1}}
    patched = crd_client.patch(
        f"{POOLS}/chat-decode/status", params={"fieldValidation": "Strict"}, json=status, headers=merge
    )
    assert patched.status_code == 200, patched.text
    scaled = crd_client.patch(f"{POOLS}/chat-decode/scale", json={"spec": {"replicas": 3}}, headers=merge)
    assert scaled.status_code == 200, scaled.text
    assert (scaled.json()["spec"], scaled.json()["status"]) == ({"replicas": 3}, {"replicas": 2, "selector": "a=b"})
    assert crd_client.get(f"{POOLS}/chat-decode").json()["spec"]["replicas"] == 3


def test_kubectl_get_shows_both_pools(crd_client: httpx.Client) -> None:
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    table = crd_client.get(DEPLOYMENTS, headers=accept).json()
    shown = [c["name"] for c in table["columnDefinitions"] if c["priority"] == 0]
    assert shown == ["Name", "Ready", "Reason", "Model", "Prefill", "Decode", "URL", "Age"]


CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/disaggdeployments.disagg.dev"


def _schema(crd_client: httpx.Client, crd: Obj, url: str, status: int) -> None:
    """Apply a schema, and wait until this Prometheus is answered with `status`."""
    headers = {"Content-Type": "application/apply-patch+yaml"}
    answer = crd_client.patch(CRD, params={"fieldManager": "test", "force": "true"}, json=crd, headers=headers)
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 20
    while _create(crd_client, watched(url)).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_resource_from_before_its_url_was_checked_can_still_be_told_so_and_mended(crd_client: httpx.Client) -> None:
    """Its URL with a password was valid then.

    The stored resource stays, and its status can be written. The next edit must correct the URL.
    """
    new: Obj = yaml.safe_load((REPO / "crds/disagg.dev_disaggdeployments.yaml").read_text())
    old = copy.deepcopy(new)
    properties = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del properties["observability"]["properties"]["prometheus"]["x-kubernetes-validations"]
    url, path = "https://me:hunter2@host", f"{DEPLOYMENTS}/old"
    apply = {"Content-Type": "application/apply-patch+yaml"}
    _schema(crd_client, old, url, 201)
    try:
        resource = watched(url)
        resource["metadata"] = {"name": "old", "namespace": "default"}
        assert crd_client.post(DEPLOYMENTS, json=resource).status_code == 201
    finally:
        _schema(crd_client, new, url, 422)
    with pytest.raises(InvalidResource, match="without user, password"):
        parse(crd_client.get(path).json())
    condition = {
        "type": "Accepted",
        "status": "False",
        "reason": "InvalidSpec",
        "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    head = {k: resource[k] for k in ("apiVersion", "kind", "metadata")}
    told = {**head, "status": {"observedGeneration": 1, "conditions": [{**condition, "observedGeneration": 1}]}}
    written = crd_client.patch(
        f"{path}/status", params={"fieldManager": "t", "force": "true"}, json=told, headers=apply
    )
    assert written.status_code == 200, written.text
    merge = {"Content-Type": "application/merge-patch+json"}
    for spec, status in (
        ({"router": {"replicas": 3}}, 200),
        ({"observability": {"prometheus": {"url": f"{url}/x"}}}, 422),
        ({"observability": {"prometheus": {"url": "https://host"}}}, 200),
    ):
        answer = crd_client.patch(path, json={"spec": spec}, headers=merge)
        assert answer.status_code == status, answer.text
    assert crd_client.delete(path).status_code == 200
