"""Images without Docker: an OCI layout with one layer, written with the standard library."""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
from collections.abc import Mapping
from pathlib import Path

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def file_sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def tar_files(files: Mapping[str, Path], target: Path) -> None:
    """Write a tar of executables (path inside -> file here), with the same bytes on every
    machine.
    """
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, source in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = source.stat().st_size
            entry.mode = 0o755
            with source.open("rb") as content:
                archive.addfile(entry, content)


def _blob(layout: Path, content: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def write_layout(layout: Path, layer: Path, config: dict[str, object], *, name: str) -> str:
    """Move the layer into a new layout around it, and return the digest of the manifest."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    digest = file_sha256(layer)
    size_bytes = layer.stat().st_size
    layer.replace(blobs / digest)
    image = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _blob(layout, json.dumps(image).encode(), _CONFIG),
        "layers": [{"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": size_bytes}],
    }
    described = _blob(layout, json.dumps(manifest).encode(), _MANIFEST)
    described["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [described]}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps(index))
    return str(described["digest"])


def write_archive(folder: Path, files: Mapping[str, Path], config: dict[str, object], *, name: str) -> Path:
    """Write an image of these executables alone into the folder, as a tar that containerd can
    import.
    """
    layer, layout, archive = folder / "layer.tar", folder / "layout", folder / "image.tar"
    tar_files(files, layer)
    write_layout(layout, layer, config, name=name)
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as packed:
        packed.add(layout, arcname=".")
    return archive
