"""A stand-in for the Python base image, made of Debian packages.

It is for machines that cannot reach an image registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from pathlib import Path

from localkube import hostpkgs, oci
from localkube.settings import BASE_IMAGE, Settings
from localkube.shell import run, run_logged, say

_SUITE = "bookworm"
_PACKAGES = ("python3", "python3-venv", "ca-certificates", "netbase", "tzdata")
_NOT_NEEDED = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists",
    "var/log", "usr/lib/python3.11/EXTERNALLY-MANAGED", "usr/lib/python3.11/test",
)  # fmt: skip
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIG: dict[str, object] = {"Env": [f"PATH={_PATH}", "LANG=C.UTF-8"], "Cmd": ["python3"]}
# This is changed by hand when the steps below change, because the layout is kept under this name.
_RECIPE = "2"
_TIMEOUT_S = 900


def layout_dir(settings: Settings) -> Path:
    text = json.dumps([_RECIPE, _SUITE, _PACKAGES, _NOT_NEEDED, _CONFIG, platform.machine()])
    return settings.cache / "base" / hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(settings: Settings) -> str:
    index = json.loads((layout_dir(settings) / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def _mirror() -> list[str]:
    """Return the package source that apt itself uses for the suite.

    It is empty if apt names none, and debootstrap then uses its default.
    """
    listed = run(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"], check=False, timeout_s=30).stdout
    for line in listed.splitlines():
        codename, _, address = line.partition(" ")
        if codename == _SUITE and address:
            return [address.strip()]
    return []


def _proxy_env() -> dict[str, str]:
    env = {**os.environ, "PATH": hostpkgs.with_sbin()}
    shell = run(["apt-config", "shell", "proxy", "Acquire::http::Proxy"], check=False, timeout_s=30).stdout.strip()
    if shell.startswith("proxy='") and "http_proxy" not in env:
        env["http_proxy"] = shell.removeprefix("proxy='").rstrip("'")
    return env


def _strip(root: Path) -> None:
    for name in _NOT_NEEDED:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
            if name.startswith("var/"):
                path.mkdir()
        elif path.exists():
            path.unlink()


def _python_below_usr_local(root: Path) -> None:
    """Give the image a Python with the prefix /usr/local, as the real image has it.

    Debian's own Python puts packages where `pip --prefix` is not looked up. A virtual environment
    with exactly that prefix has the layout of the real image, so the same Dockerfile works with
    both.
    """
    env = {"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    run(["chroot", root, "/usr/bin/python3.11", "-m", "venv", "/usr/local"], env=env, timeout_s=180)


def ensure(settings: Settings) -> Path:
    """Return the folder of the layout; it is created, in about a minute, if it does not exist."""
    layout = layout_dir(settings)
    if (layout / "index.json").exists():
        return layout
    hostpkgs.ensure(hostpkgs.FOR_IMAGES)
    started_s = time.monotonic()
    say(f"making a stand-in for {BASE_IMAGE} from Debian packages")
    work = settings.cache / "base" / "part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    root = work / "root"
    argv: list[str | Path] = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, root]
    log = settings.cache / "logs" / "debootstrap.log"
    run_logged([*argv, *_mirror()], log, timeout_s=_TIMEOUT_S, env=_proxy_env())
    _python_below_usr_local(root)
    _strip(root)
    layer = work / "layer.tar"
    run(
        ["tar", "-C", root, "--numeric-owner", "--one-file-system", "--sort=name", "--mtime=@0",
         "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*", "-cf", layer, "."],
        timeout_s=300,
    )  # fmt: skip
    oci.write_layout(work / "layout", layer, _CONFIG, name=BASE_IMAGE)
    (work / "layout").replace(layout)
    for older in layout.parent.iterdir():
        if older not in (layout, work):
            shutil.rmtree(older)
    shutil.rmtree(work)
    say(f"made the base image in {time.monotonic() - started_s:.0f} s")
    return layout
