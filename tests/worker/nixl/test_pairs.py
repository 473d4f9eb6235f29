"""Tests of two workers whose KV is moved by NIXL: by shared memory, and over UCX's TCP between two
network namespaces. They generate the tokens of one process, and say what moved the KV.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.client import body, tokens_of
from tests.worker.nixl.networks import namespaces
from tests.worker.server.process_rig import REPO, Process, process
from tests.worker.server.rig import prompt

pytestmark = pytest.mark.slow
Line = dict[str, Any]


def with_nixl(nixl: Path, **more: str) -> dict[str, str]:
    return {"PYTHONPATH": f"{REPO / 'worker'}:{nixl}"} | more


async def info(worker: Process) -> Line:
    return dict((await worker.http.get("/internal/v1/info")).json())


async def generate(prefill: Process, decode: Process, request: Line) -> tuple[Line, list[Line], list[Line]]:
    """Do what a router does; return the ticket and both streams."""
    said, other = await info(prefill), await info(decode)
    told: Line = {"mode": "remote", "prefill_incarnation": said["incarnation"]}
    if all("prefill_transports" in w["features"] for w in (said, other)):
        told["prefill_transports"] = said["kv"]["transports"]
    async with decode.http.stream("POST", "/internal/v1/decode", json=request | told) as answer:
        events = answer.aiter_lines()
        ticket = json.loads(await anext(events))["ticket"]
        first = await decoded(prefill, "prefill", request | {"ticket": ticket})
        return ticket, first, [json.loads(line) async for line in events]


async def decoded(worker: Process, role: str, request: Line) -> list[Line]:
    answer = await worker.http.post(f"/internal/v1/{role}", json=request)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


@asynccontextmanager
async def ready(*workers: Any) -> AsyncIterator[list[Process]]:
    async with workers[0] as a, workers[1] as b, workers[2] as c:
        await asyncio.gather(a.ready(), b.ready(), c.ready())
        yield [a, b, c]


async def check(prefill: Process, decode: Process, one: Process, moved: Line | None, own: str = "") -> None:
    """Check the tokens, what both say of the transfer, and that no block stays held. Decode names
    its `own` interface.
    """
    for n in (1, 40, 700):
        request = body(prompt(n), max_new_tokens=20, temperature=0.8, top_p=0.9)
        whole = await decoded(one, "decode", request | {"mode": "local"})
        ticket, first, rest = await generate(prefill, decode, request)
        assert tokens_of(first + rest) == tokens_of(whole), (first, rest)
        assert ("offer" in ticket) == (moved is not None)
        if moved is not None:
            assert first[1].items() >= moved.items(), first[1]
            assert rest[0].items() >= (moved | {"interface": own}).items(), rest[0]
    for worker in (prefill, decode):
        kv = (await info(worker))["kv"]
        assert kv["blocks_free"] == kv["blocks_total"]
        if moved is not None:
            said = moved if worker is prefill else moved | {"interface": own}
            assert {name: kv[name] for name in said} == said
            metrics = (await worker.http.get("/metrics")).text
            labels = 'evidence="Proved",transport="' + moved["transport"]
            assert f'direction="{"sent" if worker is prefill else "received"}",{labels}"}} 3.0' in metrics
            assert "disagg_kv_quarantined_blocks 0.0" in metrics


async def test_neighbours_use_shared_memory_and_others_tcp(tiny: Path, nixl: Path) -> None:
    """A worker without NIXL pairs with one that has it, in either role."""
    with_it: Line = {"more": with_nixl(nixl)}
    shm = {"transport": "shm", "evidence": "Proved", "interface": ""}
    async with ready(
        process(tiny, "prefill", **with_it), process(tiny, "decode", **with_it), process(tiny, "both")
    ) as (prefill, decode, plain):
        await check(prefill, decode, plain, shm)
        await check(prefill, plain, plain, None)
        await check(plain, decode, plain, None)


async def test_a_worker_without_nixl_says_so(tiny: Path) -> None:
    async with process(tiny, transport="rdma") as one:
        await one.ready()
        said = await info(one)
        assert said["kv"]["transport"] == "tcp"
        assert "transports" not in said["kv"]
        one.running.terminate()
        assert "DISAGG_TRANSPORT=rdma: NIXL is not installed, so that KV goes over TCP" in await one.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
async def test_two_network_namespaces_use_the_tcp_of_ucx_if_it_is_asked_for(tiny: Path, nixl: Path) -> None:
    more = with_nixl(nixl, UCX_TLS="tcp")
    with namespaces() as ends:
        workers = [
            process(tiny, role, within=command, more=more, host=host, kv_interface=device, nixl_over_tcp="true")
            for (command, host), role, device in zip(ends, ("prefill", "decode"), ("kvs0", "kvr0"), strict=True)
        ]
        async with ready(*workers, process(tiny, "both")) as (prefill, decode, one):
            first = {"transport": "tcp", "evidence": "Proved", "interface": "kvs0"}
            await check(prefill, decode, one, first, "kvr0")
