"""Tests that an image of bare programs follows the OCI layout and has the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from localkube import oci


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        found = {m.name.removeprefix("./"): opened.extractfile(m) for m in opened if m.isfile()}
        return {name: content.read() for name, content in found.items() if content is not None}


def build(folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_text(f"#!{name}")
    files = {"bin/two": folder / "two", "one": folder / "one"}
    return members(oci.write_archive(folder, files, {"Entrypoint": ["/one"]}, name="example.org/pair:1"))


def test_the_image_holds_the_programs_and_every_digest_is_right(tmp_path: Path) -> None:
    found = build(tmp_path / "a")
    assert found == build(tmp_path / "b")

    def blob(described: dict[str, Any]) -> bytes:
        algorithm, digest = described["digest"].split(":")
        content = found[f"blobs/{algorithm}/{digest}"]
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (digest, described["size"])
        return content

    (described,) = json.loads(found["index.json"])["manifests"]
    assert described["annotations"]["io.containerd.image.name"] == "example.org/pair:1"
    manifest = json.loads(blob(described))
    assert json.loads(blob(manifest["config"]))["config"] == {"Entrypoint": ["/one"]}
    with tarfile.open(fileobj=io.BytesIO(blob(manifest["layers"][0]))) as layer:
        assert [(m.name, m.mode) for m in layer] == [("bin/two", 0o755), ("one", 0o755)]
