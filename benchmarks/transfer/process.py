"""The two processes of the benchmarks of the transfer, one at each end of the link."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]


class End:
    """A process that makes the transfers that it is told.

    `nixl` is the folder in which NIXL is installed, and `ucx_tls` are the transports of UCX.
    """

    def __init__(self, command: list[str], role: str, nixl: str = "", ucx_tls: str = "") -> None:
        folders = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "worker", nixl) if folder)
        environment = os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}
        environment |= {"UCX_TLS": ucx_tls} if ucx_tls else {}
        self._process = subprocess.Popen(
            [*command, sys.executable, "-m", "benchmarks.transfer.endpoint", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[str] = self._process.stdin
        self._out: IO[str] = self._process.stdout

    @property
    def pid(self) -> int:
        """The process; where the command enters a namespace, that has replaced itself by it."""
        return self._process.pid

    def tell(self, job: dict[str, Any]) -> None:
        self._in.write(json.dumps(job) + "\n")
        self._in.flush()

    def hear(self) -> dict[str, Any]:
        line = self._out.readline()
        if not line:
            raise SystemExit("a process of the benchmark has ended")
        return dict(json.loads(line))

    def close(self) -> None:
        self._in.close()
        self._process.wait(30)
        self._out.close()
