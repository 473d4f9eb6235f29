"""Prometheus and prometheus-adapter as images of the cluster, for testing scaling by an HPA."""

from __future__ import annotations

import tempfile
from pathlib import Path

from localkube import gobuild, images, oci
from localkube.settings import Settings

_NOBODY = "65534:65534"


def load(settings: Settings, mode: str) -> None:
    """Build the missing programs and load both images.

    The programs are static, so an image contains nothing else.
    """
    gobuild.build(settings, gobuild.METRICS)
    for name in ("prometheus", "prometheus-adapter"):
        config: dict[str, object] = {"Entrypoint": [f"/{name}"], "User": _NOBODY}
        files = {name: gobuild.program(settings, f"bin/{name}")}
        with tempfile.TemporaryDirectory(dir=settings.cache) as folder:
            images.load(settings, mode, [oci.write_archive(Path(folder), files, config, name=f"disagg.dev/{name}:dev")])
