"""The reserved names of `engine.env` are all that the operator sets.

No other variable can therefore contradict the spec.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.api.resources import Obj, good
from tests.operator.desired.facts import FACTS

from disagg_operator.api import InvalidResource, parse
from disagg_operator.api.reserved import reserved_environment
from disagg_operator.desired import render
from disagg_operator.desired.local_process import worker_process
from disagg_wire.environment import WorkerOption

REPO = Path(__file__).resolve().parents[3]
ROLES = ("prefill", "decode")
_POOL = {
    "accelerator": {"product": "NVIDIA-H100-80GB-HBM3", "count": 4},
    "parallelism": {"tensor": 4},
    "kvCacheSize": "2Gi",
}
# All fields of the spec that reach the environment of a worker are set.
FULLEST = good(
    model={"uri": "hf://org/name", "name": "n", "revision": "main", "authSecretRef": {"name": "hf"}},
    engine={
        "dtype": "bfloat16", "quantization": "int8", "numerics": "Fast", "maxModelLen": 4096, "blockSizeTokens": 32,
        "threads": 2,
        "prefixCaching": {"enabled": True, "eviction": "fifo", "hostMemory": "1Gi"},
    },
    prefill=_POOL,
    decode=_POOL,
    kvTransfer={
        "transport": "rdma", "integrity": "crc32c",
        "network": {"attachmentRef": {"name": "fabric"}, "interface": "rdma0", "rdmaResource": {"name": "rdma/hca"}},
    },
    objectives={"tpotSeconds": {"p99": 0.03}},
)  # fmt: skip


def _examples() -> dict[str, Obj]:
    found = {}
    for path in sorted((REPO / "examples").glob("*.yaml")):
        for resource in yaml.safe_load_all(path.read_text()):
            if resource["kind"] == "DisaggDeployment":
                found[path.name] = resource
    return found


def _rendered(resource: Obj) -> set[str]:
    """Return the environment of all worker containers, without the additions of the resource."""
    pools = {role: {k: v for k, v in resource["spec"][role].items() if k != "podTemplate"} for role in ROLES}
    dd = parse({**resource, "spec": {**resource["spec"], **pools}})
    deployments: list[Any] = [o for o in render(dd, FACTS) if o["kind"] == "Deployment"]
    workers = [d for d in deployments if not d["metadata"]["name"].endswith("-router")]
    assert len(workers) == len(ROLES)
    containers = [c for d in workers for c in d["spec"]["template"]["spec"]["containers"]]
    return {e["name"] for c in containers for e in c["env"]} - {e.name for e in dd.spec.engine.env}


def test_the_operator_sets_just_the_names_that_it_reserves() -> None:
    rendered, reserved = _rendered(FULLEST), set(reserved_environment())
    assert rendered - reserved == {WorkerOption.HF_HOME}  # a default that no field of the spec sets
    assert reserved - rendered == {"DISAGG_KV_HOST"}  # KV uses the address of the interface or of the pod


_BUNDLED = {name: r for name, r in _examples().items() if parse(r).spec.engine.known.process is None}


@pytest.mark.parametrize("resource", _BUNDLED.values(), ids=_BUNDLED)
def test_no_example_is_rendered_with_a_name_that_is_not_reserved(resource: Obj) -> None:
    """The engines with an adapter have such tests in tests/operator/engines."""
    assert _rendered(resource) <= {*reserved_environment(), WorkerOption.HF_HOME}


@pytest.mark.parametrize("role", ROLES)
def test_a_worker_on_this_machine_gets_no_other_names(role: str) -> None:
    process = worker_process(parse(FULLEST), role, 0, 8000, "/tmp/key")
    assert set(process.environment) <= set(reserved_environment())


@pytest.mark.parametrize("name", reserved_environment())
def test_a_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidResource, match=rf"spec.engine.env\[{name}\].name: this variable is set by the operator"):
        parse(good(engine={"env": [{"name": name, "value": "1"}]}))


def test_an_environment_can_not_contradict_the_quantization_of_its_spec() -> None:
    with pytest.raises(InvalidResource, match="DISAGG_QUANTIZATION"):
        parse(good(engine={"quantization": "int8", "env": [{"name": "DISAGG_QUANTIZATION", "value": "int4"}]}))


def test_other_variables_are_free() -> None:
    dd = parse(
        good(engine={"env": [{"name": "DISAGG_LOG_LEVEL", "value": "debug"}, {"name": "HF_HOME", "value": "/models"}]})
    )
    assert [e.name for e in dd.spec.engine.env] == ["DISAGG_LOG_LEVEL", "HF_HOME"]
