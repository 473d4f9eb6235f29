"""Release 0.1.0 of the operator is upgraded under load: no pod restarts, and no request fails.

The operator, routers and workers of 0.1.0 run from their own images, which have the code of its
wheel, and the charts are installed by the commands of docs/upgrades.md.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import rig
from tests.e2e.traffic import expected, traffic
from tests.integration.pages import commands
from tests.releases.recorded import RELEASE

from access import router_url
from kubectl import REPO, SYSTEM_NAMESPACE, Cluster, conditions

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
NAME = "chat"
_IMAGES = ("operator", "router", "worker")
_LIMIT_S = 300.0


def _set(tag: str) -> str:
    return "--set " + ",".join(f"images.{name}=disagg.dev/{name}:{tag}" for name in _IMAGES)


def _shell(cluster: Cluster, folder: Path, command: str) -> str:
    return cluster.run("bash", "-euo", "pipefail", "-c", f"cd {folder} && {command}", timeout_s=240)


def _build(cluster: Cluster, folder: Path) -> None:
    """Build the images of the release, each on the packages of today's image."""
    with zipfile.ZipFile(next(RELEASE.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    for name in _IMAGES:
        cluster.run(
            REPO / "e2e/cluster", "image", "--file", Path(__file__).parent / "images/released.Dockerfile",
            "--context", folder, "--tag", f"disagg.dev/{name}:0.1.0",
            "--build-arg", f"BASE=disagg.dev/{name}:dev", timeout_s=600,
        )  # fmt: skip


@pytest.fixture(scope="module")
def released(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install release 0.1.0 instead of the present one, and yield the folder of both charts."""
    folder = tmp_path_factory.mktemp("charts")
    _build(cluster, tmp_path_factory.mktemp("released"))
    shutil.copy(RELEASE / "disagg-0.1.0.tgz", folder)
    _shell(cluster, folder, f"helm package {REPO}/helm/disagg && mv disagg-0.2.0-*.tgz disagg-0.2.0.tgz")
    try:
        _shell(cluster, folder, f"helm uninstall disagg -n {SYSTEM_NAMESPACE} --wait")
        _shell(cluster, folder, "kubectl delete crd disaggdeployments.disagg.dev disaggpools.disagg.dev")
        _shell(cluster, folder, f"helm install disagg disagg-0.1.0.tgz -n {SYSTEM_NAMESPACE} --wait {_set('0.1.0')}")
        yield folder
    finally:
        cluster.kubectl("delete", "dd", "--all", "--timeout=60s", timeout_s=90)
        cluster.install(print)


def _pods(cluster: Cluster) -> dict[str, tuple[str, int]]:
    """Return the uid of every pod of the deployment, and how often its containers restarted."""
    found = cluster.items("pods", f"disagg.dev/deployment={NAME}")
    return {
        p["metadata"]["name"]: (
            p["metadata"]["uid"],
            sum(c["restartCount"] for c in p["status"].get("containerStatuses", [])),
        )
        for p in found
        if "deletionTimestamp" not in p["metadata"]
    }


def _images(cluster: Cluster) -> set[str]:
    found = cluster.items("pods", f"disagg.dev/deployment={NAME}")
    return {c["image"] for p in found if "deletionTimestamp" not in p["metadata"] for c in p["spec"]["containers"]}


async def _wait(cluster: Cluster, condition: str, reason: str) -> None:
    def told() -> bool:
        found = cluster.get("dd", NAME)
        seen = conditions(found).get(condition, {})
        return bool(seen.get("reason") == reason and seen["observedGeneration"] == found["metadata"]["generation"])

    await asyncio.to_thread(
        cluster.wait, f"{condition} {reason}", told, _LIMIT_S, detail=lambda: rig.diagnosis(cluster, NAME)
    )


async def test_the_upgrade_of_0_1_0_restarts_nothing_and_fails_no_request(cluster: Cluster, released: Path) -> None:
    two = {"replicas": 2}
    obj = rig.resource(NAME, "192.168.86.0/24", prefill=two, decode=two, router={"replicas": 2})
    obj["spec"]["engine"] = {"dtype": "float32"}
    rig.apply(cluster, obj)
    cluster.wait(
        "0.1.0 serves", lambda: len(_pods(cluster)) == 6 and _ready(cluster), 180.0,
        detail=lambda: rig.diagnosis(cluster, NAME),
    )  # fmt: skip
    before = _pods(cluster)
    apply_crds, upgrade = commands("docs/upgrades.md")[:2]
    with router_url(cluster, f"{NAME}-router") as url:
        known = await expected(url, rig.MODEL)
        async with traffic(url, known=known) as seen:
            await asyncio.to_thread(_shell, cluster, released, apply_crds)
            await asyncio.to_thread(_shell, cluster, released, f"{upgrade} --wait {_set('dev')}")
            await _wait(cluster, "RuntimeUpToDate", "RuntimeUpdateAvailable")
            answered = len(seen.answers)
            await _wait(cluster, "Ready", "Ready")
        assert (seen.failures, seen.wrong) == ([], [])
        assert answered > 20
        assert _pods(cluster) == before
        assert _images(cluster) == {"disagg.dev/worker:0.1.0", "disagg.dev/router:0.1.0"}

        # An edit is rolled out by the new operator, and keeps the images.
        async with traffic(url) as seen:
            await asyncio.to_thread(lambda: rig.edit(cluster, NAME, engine={"blockSizeTokens": 32}))
            await _wait(cluster, "Progressing", "RolloutComplete")
        assert seen.failures == []
        assert _images(cluster) == {"disagg.dev/worker:0.1.0", "disagg.dev/router:0.1.0"}

        async with traffic(url) as seen:
            disagg = Path(sys.executable).with_name("disagg")
            restart = (disagg, "rollout", "restart", NAME, "--runtime", "-n", cluster.namespace)
            await asyncio.to_thread(cluster.run, *restart)
            await _wait(cluster, "RuntimeUpToDate", "UpToDate")
            await _wait(cluster, "Progressing", "RolloutComplete")
            await asyncio.to_thread(rig.wait_ready, cluster, NAME, prefill=2, decode=2)
        assert seen.failures == []
        assert _images(cluster) == {"disagg.dev/worker:dev", "disagg.dev/router:dev"}


def _ready(cluster: Cluster) -> bool:
    return conditions(cluster.get("dd", NAME)).get("Ready", {}).get("status") == "True"
