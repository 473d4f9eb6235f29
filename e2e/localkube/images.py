"""The project's images, built from its own Dockerfiles.

BuildKit builds them straight into the containerd of the cluster, or Docker does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from localkube import baseimage, gobuild, hostpkgs, kindcluster, runtime, wheels
from localkube.proc import Daemon, write_atomically
from localkube.settings import BASE_IMAGE, REPO_DIR, ClusterError, Settings
from localkube.shell import run, run_logged, say, wait_for

_BUILD_TIMEOUT_S = 1800
# The Dockerfiles may copy these. A change that no image uses costs a run of BuildKit, which finds
# everything in its cache.
_SOURCES = ("operator", "worker", "crds", "models", "requirements", "pyproject.toml", "README.md", "LICENSE")
_VLLM_FOLDER = "e2e/engines/vllm"
_VLLM = "0.32.0"
_VLLM_PINS = f"{_VLLM_FOLDER}/vllm-{_VLLM}.txt"


@dataclass(frozen=True)
class Image:
    """One Dockerfile of the project.

    The context of the build is the repository; `wheels` is a second one.
    """

    name: str
    dockerfile: str
    requirements: str
    torch_stubs: bool = False
    args: tuple[tuple[str, str], ...] = ()
    """The build arguments, by name."""
    sources: tuple[str, ...] = _SOURCES
    """What the Dockerfile may copy; the image is built again when any of it changes."""
    on_demand: bool = False
    """Whether it is built only when it is named."""

    @property
    def tag(self) -> str:
        return tag_of(self.name)

    def wheels(self, settings: Settings) -> Path:
        return wheels.ensure(settings, REPO_DIR / self.requirements, stubs=self.torch_stubs)


IMAGES = {
    image.name: image
    for image in (
        Image("operator", "operator/Dockerfile", "requirements/operator.txt"),
        Image("router", "worker/Dockerfile.router", "requirements/router.txt"),
        Image("adapter", "worker/Dockerfile.adapter", "requirements/adapter.txt"),
        Image("worker", "worker/Dockerfile", "requirements/worker-cpu.txt", torch_stubs=True, args=(("TORCH", "cpu"),)),
        # A real engine for tests. It has two gigabytes, and is of no use to most of them.
        Image(
            "vllm",
            f"{_VLLM_FOLDER}/Dockerfile",
            _VLLM_PINS,
            torch_stubs=True,
            args=(("VLLM", _VLLM),),
            sources=(f"{_VLLM_FOLDER}/Dockerfile", f"{_VLLM_FOLDER}/install.py", _VLLM_PINS, "models"),
            on_demand=True,
        ),
    )
}
USUAL = tuple(name for name, image in IMAGES.items() if not image.on_demand)


@dataclass(frozen=True)
class Build:
    """One run of the builder.

    The image is written to the `archive`, if there is one, and otherwise loaded into the cluster.
    """

    tag: str
    """The name of the image."""
    dockerfile: Path
    """The path of the Dockerfile."""
    context: Path
    """The folder that is the context of the build."""
    wheels: Path | None
    """The folder for the build context named `wheels`, if there is one."""
    args: dict[str, str]
    """The build arguments by name."""
    archive: Path | None = None
    """The archive to write, instead of loading the image into the cluster."""


def _use_base(settings: Settings) -> Path | None:
    """Return the stand-in for the base image, or None if a registry serves the real one to the
    user.
    """
    return None if os.environ.get("DISAGG_REAL_BASE_IMAGE") == "1" else baseimage.ensure(settings)


@dataclass(frozen=True)
class Prepared:
    """Downloads that continue while the cluster is being built."""

    pool: ThreadPoolExecutor
    jobs: tuple[Future[Path | None], ...]

    def wait(self) -> None:
        for job in self.jobs:
            job.result(timeout=_BUILD_TIMEOUT_S)
        self.pool.shutdown()


def start_preparing(settings: Settings, mode: str, names: Sequence[str] = ()) -> Prepared:
    """Fetch wheels and create the base image while the Go build runs.

    The one waits for the network, the other for the CPU.
    """
    pool = ThreadPoolExecutor(max_workers=2)
    jobs: list[Future[Path | None]] = []
    # The packages are installed once and here, because two threads must not compete for dpkg's
    # lock.
    hostpkgs.ensure({**hostpkgs.FOR_CLUSTER, **hostpkgs.FOR_IMAGES} if mode == "local" else {})
    if mode == "local":
        jobs.append(pool.submit(_use_base, settings))
    jobs += [pool.submit(IMAGES[name].wheels, settings) for name in names or USUAL]
    return Prepared(pool, tuple(jobs))


def _source_files(sources: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for name in sources:
        path = REPO_DIR / name
        candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [p for p in candidates if p.is_file() and "__pycache__" not in p.parts]
    return found


def _inputs_key(settings: Settings, image: Image, mode: str) -> str:
    digest = hashlib.sha256(f"{mode} {image} {image.wheels(settings).name}".encode())
    if mode == "local" and _use_base(settings) is not None:
        digest.update(baseimage.digest(settings).encode())
    for path in _source_files(image.sources):
        digest.update(f"{path.relative_to(REPO_DIR)}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def tag_of(name: str) -> str:
    return f"disagg.dev/{name}:dev"


def is_built(settings: Settings, mode: str, name: str, key: str) -> bool:
    """Whether the cluster has the image that `note_built` noted with this key."""
    path = settings.built_images(mode) / f"{name}.json"
    if not path.exists() or json.loads(path.read_text()).get("key") != key:
        return False
    return mode == "kind" or runtime.has_image(settings, tag_of(name))


def note_built(settings: Settings, mode: str, name: str, key: str) -> None:
    path = settings.built_images(mode) / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps({"key": key}))


def build_all(settings: Settings, mode: str, names: Sequence[str] = (), prepared: Prepared | None = None) -> None:
    unknown = [name for name in names if name not in IMAGES]
    if unknown:
        raise ClusterError(f"no such image: {', '.join(unknown)}; there are {', '.join(IMAGES)}")
    if mode == "external":
        raise ClusterError("the cluster is your own: push images where it can pull them (see the Dockerfiles)")
    (prepared or start_preparing(settings, mode, names)).wait()
    for name in names or USUAL:
        _build_image(settings, mode, IMAGES[name])


def _build_image(settings: Settings, mode: str, image: Image) -> None:
    if not (REPO_DIR / image.dockerfile).exists():
        raise ClusterError(f"{image.dockerfile} does not exist")
    key = _inputs_key(settings, image, mode)
    if is_built(settings, mode, image.name, key):
        say(f"{image.tag} is unchanged")
        return
    _run(settings, mode, _build_of(settings, image, image.tag))
    note_built(settings, mode, image.name, key)


def _build_of(settings: Settings, image: Image, tag: str, archive: Path | None = None) -> Build:
    return Build(tag, REPO_DIR / image.dockerfile, REPO_DIR, image.wheels(settings), dict(image.args), archive)


def export(settings: Settings, mode: str, image: Image, tag: str, archive: Path) -> None:
    """Build an image under another tag into an archive.

    `docker load`, `ctr images import` and kind accept it.
    """
    _run(settings, mode, _build_of(settings, image, tag, archive))


def build_custom(settings: Settings, mode: str, given: argparse.Namespace) -> None:
    """Build any Dockerfile, such as one of a test, for `cluster image`."""
    args = dict(str(pair).split("=", 1) for pair in given.build_arg)
    folder = given.wheels.resolve() if given.wheels else None
    _run(settings, mode, Build(given.tag, given.file.resolve(), given.context.resolve(), folder, args))


def _run(settings: Settings, mode: str, build: Build) -> None:
    started_s = time.monotonic()
    say(f"building {build.tag}")
    if mode == "kind":
        _build_with_docker(build)
        if build.archive:
            run(["docker", "save", "--output", build.archive, build.tag], timeout_s=_BUILD_TIMEOUT_S)
        else:
            kindcluster.load_image(settings, build.tag)
    elif mode == "local":
        _build_with_buildkit(settings, build)
        runtime.prune_images(settings)
    else:
        raise ClusterError("images can be built for a cluster of this tool only")
    say(f"built {build.tag} in {time.monotonic() - started_s:.0f} s")


def _build_with_docker(build: Build) -> None:
    argv: list[str | Path] = ["docker", "build", "--file", build.dockerfile, "--tag", build.tag]
    if build.wheels:
        argv += ["--build-context", f"wheels={build.wheels}"]
    for name, value in build.args.items():
        argv += ["--build-arg", f"{name}={value}"]
    run([*argv, build.context], timeout_s=_BUILD_TIMEOUT_S, env={**os.environ, "DOCKER_BUILDKIT": "1"})


def buildkitd(settings: Settings) -> Daemon:
    # The worker is the cluster's own containerd: a built image is already in its store, and nothing
    # is exported.
    argv = (
        str(gobuild.program(settings, "bin/buildkitd")), f"--addr=unix://{settings.buildkit_socket}",
        f"--root={settings.buildkit_root}", "--oci-worker=false", "--containerd-worker=true",
        f"--containerd-worker-addr={settings.containerd_socket}", "--containerd-worker-namespace=k8s.io",
        "--containerd-worker-net=host", "--containerd-worker-gc=true", "--containerd-worker-gc-keepstorage=8000",
    )  # fmt: skip
    return Daemon("buildkitd", argv, settings)


def _start_buildkitd(settings: Settings) -> None:
    if runtime.daemon(settings).pid() is None:
        raise ClusterError("the cluster is not up: images are built inside it; run `cluster up` first")
    daemon = buildkitd(settings)
    daemon.start({"PATH": gobuild.programs_path(settings)})

    def answers() -> bool:
        daemon.must_live()
        return "containerd" in run(_buildctl(settings, "debug", "workers", "--verbose"), timeout_s=15).stdout

    wait_for("buildkitd to answer", answers, timeout_s=30, log=daemon.log)


def _buildctl(settings: Settings, *words: str) -> list[str | Path]:
    return [gobuild.program(settings, "bin/buildctl"), f"--addr=unix://{settings.buildkit_socket}", *words]


def _build_with_buildkit(settings: Settings, build: Build) -> None:
    _start_buildkitd(settings)
    argv = _buildctl(settings, "build", "--progress=plain", "--frontend=dockerfile.v0")
    argv += ["--local", f"context={build.context}", "--local", f"dockerfile={build.dockerfile.parent}"]
    if build.archive:
        output = f"type=docker,name={build.tag},dest={build.archive},compression=gzip,force-compression=true"
    else:
        # Compressing a gigabyte for a store on the same disk would take longer than everything
        # else.
        output = f"type=image,name={build.tag},unpack=true,compression=uncompressed"
    argv += ["--opt", f"filename={build.dockerfile.name}", "--output", output]
    base = _use_base(settings)
    if base is not None:
        argv += ["--oci-layout", f"base={base}"]
        argv += ["--opt", f"context:{BASE_IMAGE}=oci-layout://base@{baseimage.digest(settings)}"]
    if build.wheels:
        argv += ["--opt", "context:wheels=local:wheels", "--local", f"wheels={build.wheels}"]
    for name, value in build.args.items():
        argv += ["--opt", f"build-arg:{name}={value}"]
    log = settings.logs / f"image-{build.tag.replace('/', '_').replace(':', '_')}.log"
    run_logged(argv, log, timeout_s=_BUILD_TIMEOUT_S)


def load(settings: Settings, mode: str, archives: Sequence[Path]) -> None:
    for archive in archives:
        if not archive.is_file():
            raise ClusterError(f"no image archive {archive}")
        say(f"loading {archive}")
        if mode == "kind":
            kindcluster.load_archive(settings, archive)
        elif mode == "local":
            runtime.ctr(settings, "images", "import", str(archive.resolve()), timeout_s=900)
        else:
            raise ClusterError("images can be loaded into a cluster of this tool only")
