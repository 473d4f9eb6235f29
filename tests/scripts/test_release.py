"""The parts of a release that are made without building anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from disagg_wire.version import VERSION, semver
from scripts import release


def test_the_released_chart_installs_the_released_images() -> None:
    before = (release.CHART / "values.yaml").read_text()
    after = yaml.safe_load(release.chart_values(before))
    images = {image.name: image.tag for image in release.IMAGES}
    assert after == {**yaml.safe_load(before), "images": {**images, "pullPolicy": "IfNotPresent"}}
    assert all(semver() in tag for tag in images.values())


@pytest.mark.parametrize("values", ["images: {}", "operator: disagg.dev/operator:dev\n" * 2])
def test_a_chart_that_names_its_images_otherwise_is_refused(values: str) -> None:
    with pytest.raises(ValueError, match=r"disagg\.dev/operator:dev once"):
        release.chart_values(values)


def test_an_sbom_is_valid_and_has_each_pinned_package_and_the_version() -> None:
    requirements = (release.ROOT / "requirements/router.txt").read_text()
    text = release.bom(requirements, "disagg.dev/router", VERSION, "container")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    pinned = {line.split()[0] for line in requirements.splitlines() if "==" in line and not line.startswith((" ", "#"))}
    assert {f"{part['name']}=={part['version']}" for part in found["components"]} == pinned
    assert (found["metadata"]["component"]["name"], found["metadata"]["component"]["version"]) == (
        "disagg.dev/router",
        VERSION,
    )


def test_checksums_cover_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "DIST", tmp_path)
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"abc")
    release.checksums()
    assert (tmp_path / "SHA256SUMS").read_text() == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n"
    )
