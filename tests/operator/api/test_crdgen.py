"""crds/ is current, small, and describes every field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from disagg_operator.api import crdgen

REPO = Path(__file__).resolve().parents[3]
MAX_CRD_BYTES = 120_000


@pytest.mark.parametrize("name", crdgen.generate())
@pytest.mark.parametrize("folder", ["crds", "helm/disagg/crds"])
def test_the_committed_crd_is_what_the_models_give(folder: str, name: str) -> None:
    assert (REPO / folder / name).read_text() == crdgen.as_text(crdgen.generate()[name]), "run `make generate`"


def _schema(name: str) -> dict[str, Any]:
    version: dict[str, Any] = crdgen.generate()[name]["spec"]["versions"][0]
    return dict(version["schema"]["openAPIV3Schema"])


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from _fields(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from _fields(schema["items"], f"{path}[]")


@pytest.mark.parametrize("name", crdgen.generate())
def test_the_crd_stays_small_enough_for_plain_kubectl_apply(name: str) -> None:
    assert len(json.dumps(crdgen.generate()[name], separators=(",", ":"))) < MAX_CRD_BYTES


@pytest.mark.parametrize("name", crdgen.generate())
def test_every_field_is_described(name: str) -> None:
    bare = [path for path, field in _fields(_schema(name)) if not field.get("description") and path != ".metadata"]
    assert bare == []


@pytest.mark.parametrize("name", crdgen.generate())
def test_every_printer_column_is_of_a_field(name: str) -> None:
    """The API server shows an empty column for any other path."""
    paths = {path for path, _ in _fields(_schema(name))} | {".metadata.creationTimestamp"}
    columns = crdgen.generate()[name]["spec"]["versions"][0]["additionalPrinterColumns"]
    assert columns
    assert [c["jsonPath"] for c in columns if re.sub(r"\[\?\(.*\)\]", "[]", c["jsonPath"]) not in paths] == []


@pytest.mark.parametrize("name", crdgen.generate())
def test_every_text_number_and_list_of_the_spec_is_bounded(name: str) -> None:
    for path, field in _fields(_schema(name)["properties"]["spec"]):
        kind = field.get("type")
        if kind == "string":
            assert "maxLength" in field or "enum" in field, path
        if kind in ("integer", "number"):
            assert "minimum" in field, path
            assert "maximum" in field, path
        if kind == "array":
            assert "maxItems" in field, path


@pytest.mark.parametrize("name", crdgen.generate())
def test_every_rule_has_a_message(name: str) -> None:
    schema = _schema(name)
    rules = [r for _, field in [("", schema), *_fields(schema)] for r in field.get("x-kubernetes-validations", [])]
    assert all(rule["message"] for rule in rules)


def test_the_schema_is_structural_as_far_as_one_can_see_without_an_api_server() -> None:
    for name in crdgen.generate():
        text = json.dumps(_schema(name))
        assert "$ref" not in text
        assert '"anyOf"' not in text
        assert '"title"' not in text


def test_a_pool_has_a_scale_subresource() -> None:
    version = crdgen.generate()["disagg.dev_disaggpools.yaml"]["spec"]["versions"][0]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
