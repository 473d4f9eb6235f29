"""Fixtures: a real cluster with the operator, and a namespace for each module.

There is one cluster for a session. The namespaces enforce PodSecurity `restricted`.
"""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def whole_cluster() -> Cluster:
    """Start the cluster with the operator.

    It stays up, so the next session, or `make demo`, finds it warm.
    """
    subprocess.run([REPO / "e2e/cluster", "up", "--images"], check=True, timeout=_UP_TIMEOUT_S)
    cluster = Cluster(namespace=SYSTEM_NAMESPACE)
    cluster.install(print)
    # Remove the remains of a session that was killed. An API that nobody serves would keep
    # namespaces from terminating.
    cluster.kubectl("delete", "apiservice", "-l", _LABEL)
    cluster.kubectl("delete", "namespace", "-l", _LABEL, "--timeout=120s", timeout_s=150)
    return cluster


@pytest.fixture(scope="module")
def cluster(whole_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Return the cluster as seen from the module's own namespace."""
    name = "e2e-" + re.sub(r"[^a-z0-9]+", "-", Path(str(request.path)).stem.removeprefix("test_"))
    whole_cluster.kubectl("create", "namespace", name)
    whole_cluster.kubectl("label", "namespace", name, _LABEL, "pod-security.kubernetes.io/enforce=restricted")
    yield Cluster(whole_cluster.environment, name)
    # Delete everything before the next module needs the CPU.
    whole_cluster.kubectl("delete", "dd", "--all", "-n", name, "--timeout=60s", timeout_s=90)
    whole_cluster.kubectl("delete", "pods", "--all", "-n", name, "--grace-period=1", "--timeout=60s", timeout_s=90)
    whole_cluster.kubectl("delete", "namespace", name, "--wait=false")
