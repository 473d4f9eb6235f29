"""Generated edits of podTemplates, judged by the operator and a real API server."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest
from tests.integration.apiserver import ApiServer
from tests.operator.controller.real_world import RealWorld
from tests.operator.controller.template_edits import (
    TemplateEdit,
    edit_that_the_api_server_refuses,
    edit_that_we_refuse,
    good_edit,
)

from disagg_wire.roles import ROLES

pytestmark = pytest.mark.apiserver

EDITS, RESOURCES = 500, 5
_SPEC = {
    "model": {"uri": "file:///models/m"},
    "prefill": {"replicas": 1},
    "decode": {"replicas": 1},
    "router": {"replicas": 1},
}
# So that a mount may name it.
_VOLUME = {"name": "more", "emptyDir": {}}


def _template(edit: TemplateEdit) -> dict[str, object]:
    pod = dict(edit.template.get("spec") or {})
    pod["volumes"] = [*pod.get("volumes", []), _VOLUME]
    return {**edit.template, "spec": pod}


async def _edits(world: RealWorld, name: str, seed: int) -> list[str]:
    """Make edits of both podTemplates of a resource, half of them bad; return what went wrong."""
    choice, wrong = random.Random(seed), []
    await world.create(name, _SPEC)
    await world.run(name)
    before = await world.templates(name)
    for step in range(EDITS // RESOURCES // len(ROLES)):
        make = choice.choice((good_edit, good_edit, edit_that_we_refuse, edit_that_the_api_server_refuses))
        edits = {role: make(choice) for role in ROLES}
        await world.replace(name, {f"{role}/podTemplate": _template(edit) for role, edit in edits.items()})
        await world.run(name)
        accepted, after = await world.condition(name, "Accepted"), await world.templates(name)
        for role, edit in edits.items():
            good = edit.path is None
            told = good or f"spec.{role}.podTemplate.{edit.path}" in accepted["message"]
            if (accepted["status"] == "True", after[role] != before[role], told) != (good, good, True):
                wrong.append(f"{step}: {role}: {edit}: {accepted['message']}")
        before = after
    return wrong


async def test_every_bad_edit_is_told_with_its_path_and_every_good_one_rolls(
    crd_server: ApiServer, crd_client: httpx.Client
) -> None:
    world = await RealWorld(crd_server).open()
    try:
        found = await asyncio.gather(*(_edits(world, f"chat{number}", number) for number in range(RESOURCES)))
    finally:
        await world.close()
    assert [wrong for edits in found for wrong in edits] == []
