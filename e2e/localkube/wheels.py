"""Folders of wheels, one for each locked requirements file.

With them, the build of an image needs no network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from localkube import hostpkgs
from localkube.settings import REPO_DIR, ClusterError, Settings
from localkube.shell import run, run_logged, say

_STUBS_SCRIPT = REPO_DIR / "scripts" / "torch_cpu_stubs.py"
_TIMEOUT_S = 1200
# This is the Python of the images; that of the host may be another, and its pip can still fetch for
# this one.
_TARGET = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none")


def _key(requirements: Path, stubs: bool) -> str:
    content = requirements.read_bytes() + (_STUBS_SCRIPT.read_bytes() if stubs else b"")
    return hashlib.sha256(content).hexdigest()[:16]


def folder_of(settings: Settings, requirements: Path, *, stubs: bool) -> Path:
    return settings.cache / "wheels" / f"{requirements.stem}-{_key(requirements, stubs)}"


def _python_with_pip() -> str:
    """Return this interpreter, or that of the system if this one has no pip."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    hostpkgs.ensure({"python3-pip": ("lib/python3/dist-packages/pip/__init__.py",)})
    return "/usr/bin/python3"


def ensure(settings: Settings, requirements: Path, *, stubs: bool) -> Path:
    """Fetch the locked wheels.

    For torch on a CPU, also build the wheel that stands in for the CUDA libraries.
    """
    folder = folder_of(settings, requirements, stubs=stubs)
    if folder.is_dir():
        return folder
    started_s = time.monotonic()
    say(f"fetching the wheels of {requirements.name}")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    # The pip cache is not used: the wheels are kept here, and a second copy of torch is of no use.
    argv: list[str | Path] = [_python_with_pip(), "-m", "pip", "download", "--quiet", "--no-cache-dir", "--no-deps"]
    argv += ["--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
    if sys.version_info[:2] != (3, 11):
        argv += [*_TARGET, "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]
    log = settings.cache / "logs" / f"wheels-{requirements.stem}.log"
    run_logged([*argv, "--dest", part, "-r", requirements], log, timeout_s=_TIMEOUT_S)
    if stubs:
        _add_stubs(part)
    part.replace(folder)
    for older in folder.parent.glob(f"{requirements.stem}-????????????????"):
        if older != folder:
            shutil.rmtree(older)
    say(f"fetched the wheels of {requirements.name} in {time.monotonic() - started_s:.0f} s")
    return folder


def _add_stubs(folder: Path) -> None:
    torch = sorted(folder.glob("torch-*.whl"))
    if not torch:
        raise ClusterError(f"no torch wheel in {folder}, so no stand-in for its CUDA libraries can be made")
    known = {**hostpkgs.FOR_CLUSTER, **hostpkgs.FOR_IMAGES}
    hostpkgs.ensure({name: known[name] for name in ("binutils", "gcc", "libc6-dev")})
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        with zipfile.ZipFile(torch[0]) as wheel:
            libs = [n for n in wheel.namelist() if n.startswith("torch/lib/") and n.endswith(".so")]
            wheel.extractall(unpacked, libs)
        stubs: list[str | Path] = [sys.executable, _STUBS_SCRIPT, f"{unpacked}/torch/lib", folder]
        run(stubs, timeout_s=300, env={**os.environ, "PATH": hostpkgs.with_sbin()})
