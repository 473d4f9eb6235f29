"""Tests of two pools with two versions of an engine: from the resource to the condition."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.adapter import rig
from tests.fakes.adapter_engine import IDENTITY, FakeEngine
from tests.operator.api.resources import of
from tests.operator.desired.facts import FACTS
from tests.operator.status.test_conditions import INTENT, seen
from tests.protocol.client import KEY

from disagg_operator.api import parse
from disagg_operator.desired import render
from disagg_operator.status import conditions
from disagg_operator.status.kv_links import RouterView, mismatch_of, router_view
from disagg_router import settings
from disagg_router.router import Router


def test_a_pod_template_may_give_one_pool_another_image() -> None:
    patch = {"podTemplate": {"spec": {"containers": [{"name": "main", "image": "vllm/vllm-openai:v0.32.0"}]}}}
    images = {}
    for found in render(parse(of("vllm", prefill=patch)), FACTS):
        if found["kind"] == "Deployment" and found["metadata"]["name"] != "chat-router":
            (main, _) = found["spec"]["template"]["spec"]["containers"]
            images[found["metadata"]["name"]] = main["image"]
    assert images == {"chat-prefill": "vllm/vllm-openai:v0.32.0", "chat-decode": "vllm/vllm-openai:v0.33.0"}


async def view_of(folder: Path, prefill: str, decode: str, *, pairs: int) -> RouterView:
    """Return what a router that expects `pairs` says of adapters whose engines have versions."""
    (folder / "key").write_bytes(KEY)
    members = folder / "members.json"
    values: dict[str, Any] = {
        "model_name": "tiny", "cluster_key_file": folder / "key", "membership": f"file://{members}",
        "poll_interval_s": 0.05,
    }  # fmt: skip
    engines = [FakeEngine(identity=replace(IDENTITY, version=version)) for version in (prefill, decode)]
    async with rig.running("prefill", folder, engines[0]) as one, rig.running("decode", folder, engines[1]) as other:
        workers = [{"name": side.adapter.role, "url": str(side.http.base_url)} for side in (one, other)]
        members.write_text(json.dumps({"workers": workers}))
        router = Router(settings.Settings.model_validate(values))
        running = asyncio.create_task(router.run())
        try:
            await rig.until(
                lambda: len(router.table.workers()) == 2 and router.handshakes.counts()["expected"] == pairs
            )
            found = router_view([json.loads(json.dumps(router.state()))])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await router.client.close()
    assert found is not None
    return found


async def test_pools_whose_engines_report_two_versions_are_told(tmp_path: Path) -> None:
    view = await view_of(tmp_path, "0.32.0", "0.33.0", pairs=0)
    found = {c.type: c for c in conditions.conditions(INTENT, seen(view=view))}
    for kind in ("KVTransferReady", "Ready"):
        assert (found[kind].status, found[kind].reason) == ("False", "EngineMismatch")
        assert "prefill runs vllm 0.32.0, decode runs vllm 0.33.0: they exchange no KV" in found[kind].message


async def test_pools_of_one_version_are_not(tmp_path: Path) -> None:
    view = await view_of(tmp_path, "0.33.0", "0.33.0", pairs=1)
    assert mismatch_of(view) is None
