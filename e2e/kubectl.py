"""Calls of kubectl and helm on the cluster that `e2e/cluster` created or found.

The module also has the helpers with which the demo and the end-to-end tests read objects.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
RELEASE, SYSTEM_NAMESPACE = "disagg", "disagg-system"


class ClusterFailed(Exception):
    """Raised when a step on the cluster failed; the message names it and contains its output."""


def cluster_environment() -> dict[str, str]:
    """Return our environment with the variables that `e2e/cluster env` prints. Raises
    ClusterFailed.
    """
    out = subprocess.run([REPO / "e2e/cluster", "env"], capture_output=True, text=True, timeout=60, check=False)
    if out.returncode:
        raise ClusterFailed(f"e2e/cluster env: {out.stderr}")
    environment = dict(os.environ)
    for line in out.stdout.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        environment[name] = "".join(shlex.split(value))
    return environment


class Cluster:
    """One cluster, as seen from one namespace. Every call has a deadline."""

    def __init__(self, environment: dict[str, str] | None = None, namespace: str = "default") -> None:
        self.environment = environment or cluster_environment()
        self.namespace = namespace

    def run(self, *argv: str | Path, timeout_s: float = 120, stdin: str | None = None, check: bool = True) -> str:
        """Run a program and return its standard output. Raises ClusterFailed."""
        out = subprocess.run(
            [str(a) for a in argv],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=stdin,
            check=False,
        )
        if check and out.returncode:
            raise ClusterFailed(f"{shlex.join(str(a) for a in argv)}: {out.stderr or out.stdout}")
        return out.stdout

    def kubectl(self, *argv: str | Path, timeout_s: float = 60, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in this namespace, unless `argv` names another one."""
        return self.run("kubectl", "-n", self.namespace, *argv, timeout_s=timeout_s, stdin=stdin, check=check)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object, or {} if it does not exist."""
        out = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(out)) if out.strip() else {}

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        chosen = ["-l", selector] if selector else []
        return list(json.loads(self.kubectl("get", kind, *chosen, "-o", "json"))["items"])

    def install(self, say: Callable[[str], None], **values: str) -> None:
        """Install the chart with helm, or upgrade it.

        The CRDs are applied first, because helm never upgrades them.
        """
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", REPO / "crds")
        operator = ("-n", SYSTEM_NAMESPACE, "deployment", f"{RELEASE}-operator")
        was_there = self.kubectl("get", *operator, "-o", "name", "--ignore-not-found").strip()
        sets = [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]
        say("helm install disagg (CRDs, RBAC, operator)")
        self.run(
            "helm", "upgrade", "--install", RELEASE, REPO / "helm/disagg", "--namespace", SYSTEM_NAMESPACE,
            "--create-namespace", "--reset-values", "--wait", "--timeout", "120s", *sets, timeout_s=240,
        )  # fmt: skip
        if was_there:
            # The names of the images never change, so an upgrade may leave an operator running with
            # an older image.
            self.kubectl("rollout", "restart", *operator)
            self.kubectl("rollout", "status", *operator, "--timeout=120s", timeout_s=150)

    def wait(
        self,
        what: str,
        done: Callable[[], bool],
        timeout_s: float,
        interval_s: float = 0.5,
        detail: Callable[[], str] = str,
    ) -> None:
        """Poll until `done()` is true. Raises ClusterFailed that names what was waited for."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline_s:
                raise ClusterFailed(f"{what}: not after {timeout_s:g} s\n{detail()}")
            time.sleep(interval_s)


def conditions(resource: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the conditions by type."""
    return {c["type"]: c for c in resource.get("status", {}).get("conditions", [])}


def is_true(resource: dict[str, Any], kind: str) -> bool:
    """Return whether the condition is True for the current generation of the spec."""
    condition = conditions(resource).get(kind, {})
    return condition.get("status") == "True" and condition.get("observedGeneration") == resource["metadata"].get(
        "generation"
    )


def pool_status(resource: dict[str, Any], role: str) -> dict[str, Any]:
    return next((dict(p) for p in resource.get("status", {}).get("pools", []) if p["name"] == role), {})
