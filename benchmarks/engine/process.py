"""One measured engine as a process of its own, which is idle while another one is measured."""

from __future__ import annotations

import json
import selectors
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engine import peers

_LOAD_S, _ANSWER_S = 600.0, 600.0
_MODULES = {"ours": "ours", "vllm": "vllm_cpu", "llama_cpp": "llama_cpp", "transformers": "transformers_"}


class Process:
    """A process that is started, and has loaded its model, when it is constructed.

    Raises RuntimeError with the end of its log.
    """

    def __init__(self, engine: str, model: Path, options: dict[str, Any]) -> None:
        argv = [
            str(peers.python(engine)),
            "-m",
            f"benchmarks.engine.engines.{_MODULES[engine]}",
            str(model),
            json.dumps(options),
        ]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=peers.environment(engine),
        )
        self._wait = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._wait.register(self._process.stdout, selectors.EVENT_READ)
        self._read(_LOAD_S)

    def _read(self, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline() if self._wait.select(timeout_s) else ""
        if not line:
            self._process.kill()
            self._log.seek(0)
            raise RuntimeError(f"{self._process.args!r} gave no answer:\n{self._log.read()[-3000:]}")
        return json.loads(line)

    def ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._read(_ANSWER_S)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
