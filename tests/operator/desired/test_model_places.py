"""Tests of the places of models and adapters in a pod."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import of

from disagg_operator.api import DisaggDeployment, parse
from disagg_operator.desired.model_places import claim_mounts, claim_volumes, image_folder, place_of, uses_hub


def served(uri: str, *adapters: str) -> DisaggDeployment:
    items: list[dict[str, Any]] = [{"name": f"a{i}", "uri": a} for i, a in enumerate(adapters)]
    return parse(of("vllm", model={"uri": uri, "adapters": items}))


@pytest.mark.parametrize(
    ("uri", "place", "hub", "folder"),
    [
        ("hf://org/m", "org/m", True, ""),
        ("file:///models/m", "/models/m", False, "/models/m"),
        ("pvc://claim/a/b", "/mnt/model/a/b", False, ""),
        ("pvc://claim", "/mnt/model", False, ""),
    ],
)
def test_a_model_is_on_the_hub_in_the_image_or_on_a_claim(uri: str, place: str, hub: bool, folder: str) -> None:
    dd = served(uri)
    assert (place_of(dd, uri), uses_hub(dd), image_folder(dd)) == (place, hub, folder)


def test_an_adapter_from_the_hub_needs_the_hub() -> None:
    assert uses_hub(served("file:///m", "hf://org/a"))


def test_a_claim_is_mounted_once_however_many_are_on_it() -> None:
    dd = served("pvc://models/m", "pvc://models/a", "pvc://loras/b", "pvc://loras/c")
    assert claim_mounts(served("file:///m", "pvc://loras/b", "hf://o/a"))[0]["mountPath"] == "/mnt/claims/loras"
    assert [m["mountPath"] for m in claim_mounts(dd)] == ["/mnt/model", "/mnt/claims/loras"]
    assert [v["persistentVolumeClaim"]["claimName"] for v in claim_volumes(dd)] == ["models", "loras"]
    assert [v["name"] for v in claim_volumes(dd)] == [m["name"] for m in claim_mounts(dd)] == ["model", "claim-1"]
    assert place_of(dd, "pvc://loras/c") == "/mnt/claims/loras/c"
    assert place_of(dd, "pvc://models/a") == "/mnt/model/a"
