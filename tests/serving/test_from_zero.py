"""A test of worker processes that come up from zero for requests that a router holds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.router.stack import Stack
from tests.serving import stack
from tests.worker.oracle import MODEL


@pytest.mark.slow
async def test_the_first_requests_wait_for_the_workers_and_get_the_tokens_of_later_ones(tmp_path: Path) -> None:
    """They wait longer than a request may wait for room, or take in all."""
    members = tmp_path / "workers.json"
    members.write_text('{"workers": []}')
    options = {"membership": f"file://{members}", "model_name": MODEL.name, "hold_max_wait_s": stack.WAIT_S}
    async with Stack(tmp_path, **options, queue_max_wait_s=1, request_timeout_s=5) as router:
        router.http.timeout = stack.WAIT_S
        body: dict[str, Any] = {"model": MODEL.name, "prompt": "def main(", "max_tokens": 16, "temperature": 0}
        asked = [asyncio.create_task(router.complete(**body)) for _ in range(3)]
        await router.until(lambda: router.router.queue.hold.waiting == len(asked))
        async with stack.workers(tmp_path, ["prefill", "decode"], dtype="float32"):
            held = [answer.json() for answer in await asyncio.gather(*asked)]
            await router.until(lambda: router.healthy() == 1)
            later = (await router.complete(**body)).json()
    assert later["disagg"]["path"] == "remote"
    assert {a["choices"][0]["text"] for a in held} == {later["choices"][0]["text"]}
    assert min(a["disagg"]["queue_s"] for a in held) > 0
