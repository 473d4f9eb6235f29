"""Fixtures: a real cluster with the operator, and a namespace for each module.

There is one cluster for a session. The namespaces enforce PodSecurity `restricted`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))

from kubectl import REPO, SYSTEM_NAMESPACE, Cluster

_UP_TIMEOUT_S = 45 * 60
_LABEL = "disagg-e2e=true"


def _beside_others(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "module", None), "BESIDE_OTHERS", False))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules that go beside each other first, so that two processes begin with them."""
    if all(Path(__file__).parent in item.path.parents for item in items):
        items.sort(key=lambda item: not _beside_others(item))


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this run of pytest have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextlib.contextmanager
def _turn(path: Path, *, alone: bool) -> Iterator[None]:
    """Hold a turn: wait for those who want to be alone, or, to be alone, for everybody."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="session")
def whole_cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Start the cluster with the operator.

    It stays up, so the next session, or `make demo`, finds it warm.
    """
    folder = _shared(tmp_path_factory)
    with _turn(folder / "cluster.lock", alone=True):
        if not (folder / "cluster.ready").exists():
            _prepare()
            (folder / "cluster.ready").touch()
    return Cluster(namespace=SYSTEM_NAMESPACE)


def _prepare() -> None:
    subprocess.run([REPO / "e2e/cluster", "up", "--images"], check=True, timeout=_UP_TIMEOUT_S)
    cluster = Cluster(namespace=SYSTEM_NAMESPACE)
    cluster.install(print)
    # Remove the remains of a session that was killed. An API that nobody serves would keep
    # namespaces from terminating.
    cluster.kubectl("delete", "apiservice", "-l", _LABEL)
    cluster.kubectl("delete", "namespace", "-l", _LABEL, "--timeout=120s", timeout_s=150)


@pytest.fixture(scope="module")
def cluster(
    whole_cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Return the cluster as seen from the module's own namespace.

    A module that needs the machine, or the operator, for itself waits here until it has them. Other
    modules state by BESIDE_OTHERS that a slow machine does not spoil their results, and that they
    do not disturb each other.
    """
    name = "e2e-" + re.sub(r"[^a-z0-9]+", "-", Path(str(request.path)).stem.removeprefix("test_"))
    alone = not getattr(request.module, "BESIDE_OTHERS", False)
    with _turn(_shared(tmp_path_factory) / "machine.lock", alone=alone):
        whole_cluster.kubectl("create", "namespace", name)
        whole_cluster.kubectl("label", "namespace", name, _LABEL, "pod-security.kubernetes.io/enforce=restricted")
        yield Cluster(whole_cluster.environment, name)
        # Delete everything before the next module needs the CPU.
        whole_cluster.kubectl("delete", "dd", "--all", "-n", name, "--timeout=60s", timeout_s=90)
        whole_cluster.kubectl("delete", "pods", "--all", "-n", name, "--grace-period=1", "--timeout=60s", timeout_s=90)
        whole_cluster.kubectl("delete", "namespace", name, "--wait=false")
