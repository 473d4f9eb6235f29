"""Build a release into dist/: wheel, chart, image archives, SBOMs in CycloneDX format, SHA256SUMS.

Every name contains the version, in the form of PEP 440 for the wheel and in that of SemVer for the
rest. Docker builds the images; without it they are built as for the local cluster, on Debian's
Python instead of the official base image.

Usage: release.py [--without-images]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "e2e")]

from disagg_wire.version import VERSION, semver  # noqa: E402
from localkube import archives, gobuild, oci  # noqa: E402  (the path above comes first)
from localkube.settings import Settings  # noqa: E402
from localkube.shell import say  # noqa: E402
from scripts import generate, torch_cpu_stubs  # noqa: E402

DIST = ROOT / "dist"
CHART = ROOT / "helm/disagg"


@dataclass(frozen=True)
class Image:
    """One image of the release: what it is called, and what is installed in it."""

    name: str
    requirements: str
    variant: str = ""
    extra: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        return f"disagg.dev/{self.name}:{semver()}{self.variant}"

    @property
    def file(self) -> str:
        return f"disagg-{self.name}-{semver()}{self.variant}"


IMAGES = (
    Image("operator", "operator.txt"),
    Image("router", "router.txt"),
    Image("adapter", "adapter.txt"),
    # The image for GPUs has 3 GB of CUDA libraries and is built from worker/Dockerfile where it is
    # used.
    Image("worker", "worker-cpu.txt", variant="-cpu", extra=(f"torch-cpu-stubs=={torch_cpu_stubs.VERSION}",)),
)


def _run(*argv: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run(list(argv), cwd=ROOT, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{argv[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout


def wheel() -> None:
    """Write disagg-VERSION-py3-none-any.whl."""
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", DIST)


def chart_values(text: str) -> str:
    """Return values.yaml with the release's images in the place of the development tags."""
    for image in IMAGES:
        before = f"disagg.dev/{image.name}:dev"
        if text.count(before) != 1:
            raise ValueError(f"values.yaml must name {before} once")
        text = text.replace(before, image.tag)
    return text


def chart() -> None:
    """Write disagg-VERSION.tgz, whose default images are those of the release."""
    _run(ROOT / "e2e/cluster", "build", "helm")
    helm = gobuild.program(Settings.from_env(), "bin/helm")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "disagg"
        shutil.copytree(CHART, copy)
        values = copy / "values.yaml"
        values.write_text(chart_values(values.read_text()))
        _run(helm, "lint", "--strict", copy)
        _run(helm, "package", copy, "--destination", DIST)


def bom(requirements: str, name: str, version: str, kind: str) -> str:
    """Return the SBOM of pinned requirements as JSON; `kind` is the type of the main component."""
    argv = (
        sys.executable,
        "-m",
        "cyclonedx_py",
        "requirements",
        "-",
        "--output-format",
        "JSON",
        "--output-reproducible",
    )
    found = json.loads(_run(*argv, stdin=requirements))
    found["metadata"]["component"] = {"type": kind, "bom-ref": name, "name": name, "version": version}
    for component in found["components"]:
        # It repeats the line of the requirements file; the hashes are in externalReferences, too.
        component.pop("description", None)
    return json.dumps(found, indent=1) + "\n"


def boms() -> None:
    """Write an SBOM of each image's Python packages, and one of the development environment."""
    for image in IMAGES:
        text = (ROOT / "requirements" / image.requirements).read_text() + "\n".join(image.extra)
        (DIST / f"{image.file}.cdx.json").write_text(bom(text, image.tag.rpartition(":")[0], semver(), "container"))
    text = (ROOT / "requirements/dev-cpu.txt").read_text()
    (DIST / f"disagg-{VERSION}.cdx.json").write_text(bom(text, "disagg", VERSION, "application"))


def checksums() -> None:
    """Write SHA256SUMS of all other files, for `sha256sum --check`."""
    lines = [f"{oci.file_sha256(path)}  {path.name}\n" for path in sorted(DIST.iterdir()) if path.name != "SHA256SUMS"]
    (DIST / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    if generate.stale():
        sys.exit("generated files are stale: run `make generate`")
    if _run("git", "status", "--porcelain"):
        say("note: the working tree has changes that no commit has")
    os.environ["SOURCE_DATE_EPOCH"] = _run("git", "log", "-1", "--format=%ct").strip()
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    for step in (wheel, chart, boms):
        step()
    if "--without-images" not in sys.argv[1:]:
        archives.write(DIST, {image.name: (image.tag, f"{image.file}.tar") for image in IMAGES})
    checksums()
    for path in sorted(DIST.iterdir()):
        say(f"{path.stat().st_size:>13,} bytes  dist/{path.name}")


if __name__ == "__main__":
    main()
