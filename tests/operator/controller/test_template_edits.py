"""Generated edits of podTemplates, judged by the operator and a real API server."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest
from tests.integration.apiserver import ApiServer
from tests.operator.controller.real_world import RealWorld
from tests.operator.controller.template_edits import TemplateEdit, bad_edit, good_edit

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
    """Make edits of one resource, every second of which is bad on average; return what went wrong."""
    choice, wrong = random.Random(seed), []
    await world.create(name, _SPEC)
    await world.run(name)
    for step in range(EDITS // RESOURCES):
        role = choice.choice(("prefill", "decode"))
        edit = bad_edit(choice) if choice.random() < 0.5 else good_edit(choice)
        before = await world.template(name, role)
        other = {"prefill": "decode", "decode": "prefill"}[role]
        await world.replace(name, {f"{role}/podTemplate": _template(edit), f"{other}/podTemplate": {}})
        await world.run(name)
        accepted = await world.condition(name, "Accepted")
        changed = await world.template(name, role) != before
        path = f"spec.{role}.podTemplate.{edit.path}"
        good = edit.path is None
        told = path in accepted["message"] or good
        if (accepted["status"] == "True") is not good or changed is not good or not told:
            wrong.append(f"{step}: {edit}, changed {changed}: {accepted['message']}")
    return wrong


async def test_every_bad_edit_is_told_with_its_path_and_every_good_one_rolls(
    crd_server: ApiServer, crd_client: httpx.Client
) -> None:
    world = await RealWorld(crd_server).open()
    try:
        found = await asyncio.gather(*(_edits(world, f"chat{number}", number) for number in range(RESOURCES)))
    finally:
        await world.close()
    assert sum(found, []) == []
