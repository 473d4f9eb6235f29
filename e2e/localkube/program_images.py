"""Programs of other projects as images of the cluster, such as Prometheus or KEDA."""

from __future__ import annotations

import tempfile
from pathlib import Path

from localkube import gobuild, images, oci
from localkube.gobuild import Group
from localkube.settings import Settings
from localkube.shell import say

_NOBODY = "65534:65534"


def load(settings: Settings, mode: str, *groups: Group) -> None:
    """Build the missing programs and load an image of each.

    The programs are static, so an image contains nothing else.
    """
    for group in groups:
        gobuild.build(settings, group)
        for file in group.packages:
            _load(settings, mode, file)


def _load(settings: Settings, mode: str, file: str) -> None:
    name, program = Path(file).name, gobuild.program(settings, file)
    config: dict[str, object] = {"Entrypoint": [f"/{name}"], "User": _NOBODY}
    # The program's folder is named after all that it was built from.
    key = f"{program} {config}"
    if images.is_built(settings, mode, name, key):
        say(f"{images.tag_of(name)} is unchanged")
        return
    with tempfile.TemporaryDirectory(dir=settings.cache) as folder:
        archive = oci.write_archive(Path(folder), {name: program}, config, name=images.tag_of(name))
        images.load(settings, mode, [archive])
    images.note_built(settings, mode, name, key)
