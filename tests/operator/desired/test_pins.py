"""Tests of the pins: their text, and how they are found where none are recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import good
from tests.operator.desired.facts import FACTS

from disagg_operator.api import DisaggDeployment, parse_file
from disagg_operator.desired import Images, pins, render, renderer
from disagg_operator.desired.pins import Pins

OLD = Images(worker="worker:old", router="router:old", adapter="adapter:old", engines={"vllm": "vllm:old"})
NEW = Images(worker="worker:new", router="router:new", adapter="adapter:new")
VLLM: dict[str, Any] = {"engine": {"type": "vllm"}, "kvTransfer": {"transport": "tcp"}}


def builtin(**spec: Any) -> DisaggDeployment:
    return parse_file(good(**spec))


def adapted(**spec: Any) -> DisaggDeployment:
    gpu = {"accelerator": {"count": 1}}
    return parse_file(good(**{"prefill": gpu, "decode": gpu, **VLLM, **spec}))


def workloads(dd: DisaggDeployment, images: Images) -> tuple[dict[str, list[Any]], list[Any]]:
    """Return the Deployments of the pools and those of the routers, rendered with these pins."""
    found = [o for o in render(dd, replace(FACTS, images=images)) if o["kind"] == "Deployment"]
    by_component = {o["metadata"]["labels"]["app.kubernetes.io/component"]: [o] for o in found}
    return {role: by_component[role] for role in ("prefill", "decode")}, by_component["router"]


images = st.builds(
    Images,
    worker=st.text(min_size=1),
    router=st.text(min_size=1),
    adapter=st.text(min_size=1),
    engines=st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=2),
    renderer=st.integers(renderer.FIRST, renderer.CURRENT),
)


@given(images, st.text(), st.booleans())
def test_pins_are_read_as_they_were_written(found: Images, asked: str, moving: bool) -> None:
    written = Pins(found, asked, moving)
    assert pins.from_text(pins.to_text(written), NEW) == written


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "7", "{", '{"renderer": 1}', pins.to_text(Pins(OLD)).replace('"worker:old"', "7"),
     pins.to_text(Pins(OLD)).replace('"worker:old"', '""'), pins.to_text(Pins(OLD)).replace('{"vllm":"vllm:old"}', "7"),
     "[" * 100_000],
    ids=str,
)  # fmt: skip
def test_what_somebody_else_wrote_is_no_pin(text: str) -> None:
    assert pins.from_text(text, NEW) is None


@pytest.mark.parametrize(("written", "read"), [(0, renderer.FIRST), (99, renderer.CURRENT)])
def test_a_renderer_that_this_operator_lacks_is_the_nearest_one(written: int, read: int) -> None:
    raw = json.loads(pins.to_text(Pins(OLD))) | {"renderer": written}
    found = pins.from_text(json.dumps(raw), NEW)
    assert found is not None
    assert found.images.renderer == read


def test_the_pins_of_this_release_have_the_image_of_the_engine() -> None:
    assert pins.current_for(builtin(), NEW) == NEW
    engine = adapted().spec.engine.known.image
    assert pins.current_for(adapted(), NEW).engines == {"vllm": engine}


def test_an_engine_that_was_not_pinned_gets_the_image_of_this_release() -> None:
    current = replace(NEW, engines={"vllm": "vllm:new", "sglang": "sglang:new"})
    assert pins.completed(OLD, current).engines == {"vllm": "vllm:old", "sglang": "sglang:new"}


def test_images_that_a_deployment_does_not_use_change_no_pod() -> None:
    own = builtin(engine={"image": "own:1"}, router={"image": "own:2"})
    assert pins.same_pods(own, OLD, NEW)
    assert not pins.same_pods(builtin(engine={"image": "own:1"}), OLD, NEW)
    assert not pins.same_pods(builtin(router={"image": "own:2"}), OLD, NEW)
    assert pins.same_pods(builtin(), OLD, replace(OLD, adapter="other", engines={}))
    assert not pins.same_pods(adapted(), OLD, replace(OLD, adapter="other"))
    assert not pins.same_pods(adapted(), OLD, replace(OLD, engines={}))


@pytest.mark.parametrize("dd", [builtin(), adapted()], ids=["builtin", "adapted"])
@pytest.mark.parametrize("version", range(renderer.FIRST, renderer.CURRENT + 1))
def test_lost_pins_are_found_in_what_runs(dd: DisaggDeployment, version: int) -> None:
    before = replace(OLD, renderer=version)
    found = pins.found_in(dd, *workloads(dd, before), pins.current_for(dd, NEW))
    assert found is not None
    assert pins.same_pods(dd, found, before)
    assert pins.revision_under(dd, found) == pins.revision_under(dd, before)


def test_without_workers_there_is_nothing_to_be_found() -> None:
    assert pins.found_in(builtin(), {"prefill": [], "decode": []}, [], NEW) is None


def test_after_an_edit_in_the_meantime_the_images_are_still_found() -> None:
    found = pins.found_in(builtin(engine={"dtype": "float32"}), *workloads(builtin(), OLD), NEW)
    assert found is not None
    assert (found.worker, found.router, found.renderer) == ("worker:old", "router:old", renderer.FIRST)


def test_an_image_of_the_spec_is_not_taken_for_a_default() -> None:
    patch = {"podTemplate": {"spec": {"containers": [{"name": "main", "image": "patched:1"}]}}}
    for own in (builtin(engine={"image": "own:1"}), builtin(prefill=patch, decode=patch)):
        found = pins.found_in(own, *workloads(own, OLD), NEW)
        assert found is not None
        assert (found.worker, found.router) == ("worker:new", "router:old")


def test_workloads_that_are_not_ours_explain_nothing() -> None:
    strange = {"spec": {"template": {"metadata": {}, "spec": {"containers": [{"name": "main"}, {"name": "adapter"}]}}}}
    found = pins.found_in(builtin(), {"prefill": [strange], "decode": [strange]}, [strange], NEW)
    assert found == replace(NEW, renderer=renderer.FIRST)
