"""Somebody who administers a cluster by the commands of the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.apiserver import REPO, ApiServer, program_path


def commands(page: str) -> list[str]:
    """Return the commands of a page of the documentation, in order."""
    blocks = re.findall(r"```console\n(.*?)```", (REPO / page).read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


class Shell:
    """A shell with helm, kubectl and disagg of somebody who administers the cluster.

    It is in a folder of its own.
    """

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._folder = folder
        programs = {str(Path(program_path(name)).parent): None for name in ("helm", "kubectl")}
        programs[str(Path(sys.executable).parent)] = None
        self._environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
            "KUBECONFIG": str(server.kubeconfig),
            "PATH": ":".join([*programs, os.environ["PATH"]]),
            "HOME": str(folder),
            "PYTHONPATH": f"{REPO}/operator:{REPO}/worker",
        }

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout
