"""The first three commands of each runbook, as they stand there, on a real API server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from tests.integration.administrator import Shell
from tests.integration.apiserver import REPO, ApiServer
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.integration.pages import commands
from tests.ports import free_port

from disagg_operator.kube.resources import POD, name_of

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

PAGES = [str(page.relative_to(REPO)) for page in sorted((REPO / "docs/runbooks").glob("*.md"))]
# What is not run here, by how it begins, and why.
NOT_RUN = {
    "kubectl get --raw ": "an API server forwards to no loopback address; its patterns are tested beside the alerts",
    "kubectl logs ": "needs kubelets",
    "kubectl top ": "needs a metrics server",
    "kubectl get podmonitors ": "needs the CRDs of the Prometheus operator",
    "disagg explain ": "asks the operator through the API server, which forwards to no loopback address",
}
# What each command must show.
SHOWS = {
    "kubectl describe dd ": "Conditions:",
    "kubectl describe pod ": "Labels:",
    "kubectl get lease ": "HOLDER",
    "kubectl get networkpolicies ": "chat-",
    "disagg rollout status ": "RolloutComplete",
}


def found() -> dict[str, str]:
    """Return all commands, each with a page that has it."""
    return {line: page for page in PAGES for line in commands(page)}


def is_run(line: str) -> bool:
    return not line.startswith(tuple(NOT_RUN))


def test_what_is_not_run_is_there() -> None:
    for words in NOT_RUN:
        assert any(line.startswith(words) for line in found()), words
    assert sum(map(is_run, found())) >= 8


async def test_the_commands_of_the_runbooks_work(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    shell, kubelets = Shell(server, tmp_path, cluster.namespace), Kubelets(cluster)
    names = {"NS": cluster.namespace, "NAME": "chat", "SYSTEM": cluster.namespace}
    leases = {"DISAGG_LEASE_NAMESPACE": cluster.namespace, "DISAGG_LEASE_NAME": "disagg-operator"}
    async with operator(server, tmp_path, cluster.namespace, **leases), kubelets.running(free_port()):
        await cluster.apply_resource()

        async def ready() -> bool:
            return bool((await cluster.condition("Ready"))["status"] == "True")

        await eventually("the deployment is ready", ready, 180.0)
        names["POD"] = next(
            name_of(p) for p in await cluster.kube.list(POD, cluster.namespace) if "decode" in name_of(p)
        )
        for line, page in found().items():
            if not is_run(line):
                continue
            said = await asyncio.to_thread(shell.run, re.sub(r"\b(NS|NAME|SYSTEM|POD)\b", lambda m: names[m[1]], line))
            expected = next((text for words, text in SHOWS.items() if line.startswith(words)), "")
            if line.startswith("kubectl get pods -n NS"):
                expected = "chat-decode" if "decode" in line or "pool" not in line else "chat-prefill"
            assert expected in said, f"{page}: {line}\n{said}"
