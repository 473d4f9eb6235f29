"""Prometheus and prometheus-adapter as images of the cluster, for testing scaling by an HPA."""

from __future__ import annotations

import tempfile
from pathlib import Path

from localkube import gobuild, images, oci
from localkube.settings import Settings
from localkube.shell import say

_NOBODY = "65534:65534"


def load(settings: Settings, mode: str) -> None:
    """Build the missing programs and load both images.

    The programs are static, so an image contains nothing else.
    """
    gobuild.build(settings, gobuild.METRICS)
    for name in ("prometheus", "prometheus-adapter"):
        config: dict[str, object] = {"Entrypoint": [f"/{name}"], "User": _NOBODY}
        program = gobuild.program(settings, f"bin/{name}")
        # The program's folder is named after all that it was built from.
        key = f"{program} {config}"
        if images.is_built(settings, mode, name, key):
            say(f"{images.tag_of(name)} is unchanged")
            continue
        with tempfile.TemporaryDirectory(dir=settings.cache) as folder:
            archive = oci.write_archive(Path(folder), {name: program}, config, name=images.tag_of(name))
            images.load(settings, mode, [archive])
        images.note_built(settings, mode, name, key)
