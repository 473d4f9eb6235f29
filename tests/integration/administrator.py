"""Somebody who administers a cluster by the commands of the documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.apiserver import REPO, ApiServer, program_path


class Shell:
    """A shell with helm, kubectl and disagg of somebody who administers the cluster.

    It is in a folder of its own, and works in one namespace.
    """

    def __init__(self, server: ApiServer, folder: Path, namespace: str = "default") -> None:
        self._folder = folder
        self._namespace = namespace
        config = json.loads(server.kubeconfig.read_text())
        config["contexts"][0]["context"]["namespace"] = namespace
        kubeconfig = folder / "administrator.kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        programs = {str(Path(program_path(name)).parent): None for name in ("helm", "kubectl")}
        programs[str(Path(sys.executable).parent)] = None
        self._environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
            "KUBECONFIG": str(kubeconfig),
            "PATH": ":".join([*programs, os.environ["PATH"]]),
            "HOME": str(folder),
            "PYTHONPATH": f"{REPO}/operator:{REPO}/worker",
        }

    def run(self, command: str) -> str:
        """Run a command, which must succeed, and return what it prints."""
        if command.startswith("disagg "):
            command += f" -n {self._namespace}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout
