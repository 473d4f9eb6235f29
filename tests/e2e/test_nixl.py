"""KV that is moved by NIXL between pods, over UCX's TCP on the second network.

RDMA would be the same code, chosen by the devices of the pods.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import rig

from access import router_url
from kubectl import REPO, Cluster, conditions

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
NAME, IMAGE = "nixl", "disagg.dev/worker:nixl"
_DOCKERFILE = Path(__file__).parent / "images" / "nixl.Dockerfile"


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Cluster:
    """Return the cluster with one pair of workers that have NIXL and may use it over TCP."""
    done = subprocess.run([REPO / "scripts/nixl"], check=True, capture_output=True, text=True, timeout=240)
    cluster.run(
        REPO / "e2e/cluster", "image", "--file", _DOCKERFILE, "--context", done.stdout.strip(),
        "--tag", IMAGE, "--build-arg", "BASE=disagg.dev/worker:dev", timeout_s=600,
    )  # fmt: skip
    env = [{"name": "DISAGG_NIXL_OVER_TCP", "value": "true"}, {"name": "UCX_TLS", "value": "tcp"}]
    engine = {"dtype": "float32", "image": IMAGE, "env": env}
    rig.apply(cluster, rig.resource(NAME, "192.168.89.0/24", engine=engine))
    rig.wait_ready(cluster, NAME, prefill=1, decode=1)
    return cluster


@pytest.fixture(scope="module")
def url(pair: Cluster) -> Iterator[str]:
    with router_url(pair, f"{NAME}-router") as found:
        yield found


async def test_what_moves_the_kv_of_a_pair_is_said_everywhere(pair: Cluster, url: str) -> None:
    async with rig.api(url) as client:
        answer = await rig.stream(client, range(1, 41), 16)
    trace = answer.trace
    assert (trace["path"], trace["transport"], trace["evidence"], trace["interface"]) == (
        "remote", "tcp", "Proved", "net1",
    )  # fmt: skip
    found = pair.get("dd", NAME)
    pairs = found["status"]["pairs"]
    assert (pairs["uses"], pairs["evidence"], pairs["interface"]) == ("tcp", "Proved", "net1")
    assert "over tcp (Proved) on net1" in conditions(found)["KVTransferReady"]["message"]
    wide = pair.kubectl("get", "dd", NAME, "-o", "wide")
    assert "tcp" in wide
    log = pair.kubectl("logs", "-l", rig.selector(NAME, "prefill"), "-c", "main", "--tail=-1")
    assert "goes over tcp (Proved) on net1" in log
    assert "NIXL reaches other workers by tcp" in log


async def test_a_transport_that_is_not_there_is_seen_and_with_forbid_not_ready(pair: Cluster) -> None:
    """The declared transport is a part of the pods, so this is a rollout."""
    rig.edit(pair, NAME, kvTransfer={"transport": "nvlink", "fallback": "Forbid"})

    def told() -> bool:
        condition = conditions(pair.get("dd", NAME)).get("KVTransferReady", {})
        return condition.get("reason") == "TransportFallback" and "nvlink is asked for" in condition["message"]

    pair.wait("KVTransferReady TransportFallback", told, 240.0, detail=lambda: rig.diagnosis(pair, NAME))
