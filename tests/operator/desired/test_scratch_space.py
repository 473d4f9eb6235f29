"""Tests of how much the volumes in which pods write may hold."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good, of
from tests.operator.desired.facts import FACTS
from tests.operator.desired.golden import EXAMPLES, SPECS, example

from disagg_operator.api import DisaggDeployment, parse
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.desired import render
from disagg_operator.desired.renderer import FIRST
from disagg_operator.desired.scratch_space import cache_volume, tmp_volume
from disagg_operator.vocabulary import Obj

HUB = {"uri": "hf://org/m"}
EIGHT = {"accelerator": {"count": 8}, "parallelism": {"tensor": 8}}


def cache_gib(dd: DisaggDeployment) -> int:
    return quantity_bytes(cache_volume(dd, "decode")["emptyDir"]["sizeLimit"]) >> 30


@pytest.mark.parametrize(
    ("spec", "gib"),
    [
        ({}, 32),
        ({"model": HUB}, 32 + 64),
        ({"model": HUB, "decode": {"accelerator": {"count": 1}}}, 32 + 512),
        ({"model": HUB, "decode": EIGHT}, 32 + 8 * 512),
        ({"decode": EIGHT}, 32),
        ({"model": HUB, "decode": {"deviceClaim": {"templateName": "t"}, "parallelism": {"tensor": 2}}}, 32 + 1024),
    ],
)
def test_the_cache_has_room_for_any_checkpoint_that_fits_the_devices(spec: dict[str, Any], gib: int) -> None:
    assert cache_gib(parse(good(**spec))) == gib


def test_an_adapter_from_the_hub_is_downloaded_too() -> None:
    adapters = [{"name": "a", "uri": "hf://org/a"}]
    assert cache_gib(parse(of("vllm", model={"uri": "pvc://claim/m", "adapters": adapters}))) > 32


def test_what_the_first_renderer_made_has_no_limit() -> None:
    dd = parse(good(model=HUB))
    assert tmp_volume(renderer=FIRST) == {"name": "tmp", "emptyDir": {}}
    assert cache_volume(dd, "decode", FIRST) == {"name": "cache", "emptyDir": {}}


def pods(dd: DisaggDeployment) -> list[Obj]:
    return [o["spec"]["template"]["spec"] for o in render(dd, FACTS) if o["kind"] == "Deployment"]


@pytest.mark.parametrize("name", [*EXAMPLES, *SPECS])
def test_no_volume_of_any_pod_is_without_a_limit(name: str) -> None:
    dd = parse(good(**SPECS[name])) if name in SPECS else example(name)
    for pod in pods(dd):
        assert all("sizeLimit" in v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v)


def test_a_pod_template_may_ask_for_more_or_for_another_volume() -> None:
    def cache(volume: Obj) -> Obj:
        spec = {"podTemplate": {"spec": {"volumes": [{"name": "cache", **volume}]}}}
        (pod, *_) = pods(parse(good(model=HUB, prefill=spec)))
        return next(v for v in pod["volumes"] if v["name"] == "cache")

    assert cache({"emptyDir": {"sizeLimit": "3Ti"}})["emptyDir"] == {"sizeLimit": "3Ti"}
    claim = {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}
    assert cache({"emptyDir": None, "ephemeral": claim}) == {"name": "cache", "emptyDir": None, "ephemeral": claim}
