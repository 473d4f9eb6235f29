"""Tests of real workers whose KV is moved by NIXL, of which one is killed, frozen or cut off under
load: no stream is lost or changed, no block is leaked, and what was held is given back.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from tests.protocol.client import KEY
from tests.worker import checkpoints
from tests.worker.nixl.deployment import Deployment, deployment, member
from tests.worker.nixl.networks import namespaces
from tests.worker.oracle import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]
TLS = {"shm": "cma,tcp", "tcp": "tcp"}
_SENT = 'disagg_kv_transfers_total{direction="sent",evidence="Proved",transport="%s"}'


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model with much KV: 16 KiB a token."""
    shape = {"num_hidden_layers": 4, "head_dim": 64, "num_key_value_heads": 4, "num_attention_heads": 4}
    more = {"vocab_size": 2048, "max_position_embeddings": 4096}
    folder = checkpoints.make(tmp_path_factory.mktemp("weights"), 3, **shape, **more)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    (folder / "key").write_bytes(KEY)
    return folder


async def restarted(served: Deployment, name: str) -> None:
    """Kill a worker and start it again at the same addresses: it is another incarnation."""
    before = (await served.info(name))["incarnation"]
    one = served.members[name]
    one.signal(signal.SIGKILL)
    assert one.process is not None
    await one.process.wait()
    await asyncio.sleep(1.0)  # Long enough for the load to meet it.
    await one.start(served.folder)
    async with asyncio.timeout(120):
        while True:
            try:
                now = await served.info(name)
                if "kv" in now and now["incarnation"] != before:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)


async def frozen(served: Deployment, name: str, seconds: float) -> None:
    served.members[name].signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        served.members[name].signal(signal.SIGCONT)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
async def test_workers_that_die_or_freeze_in_the_middle_cost_no_stream_and_no_block(
    weights: Path, nixl: Path, transport: str
) -> None:
    more = {"ucx_tls": TLS[transport], "nixl_over_tcp": transport == "tcp"}
    names = ("prefill-0", "prefill-1", "decode-0", "decode-1")
    async with deployment(weights, [member(weights, nixl, name, **more) for name in names], 4) as served:
        async with served.load():
            for name in ("prefill-0", "decode-0"):
                await restarted(served, name)
                await served.until_paired(4)
            for name in ("decode-1", "prefill-1"):
                await frozen(served, name, 4.0)
                await served.until_paired(4)
        await served.nothing_is_held()
        for name in ("prefill-0", "prefill-1"):
            assert await served.counted(name, _SENT % transport) > 0
            sent = await served.counted(name, 'disagg_kv_transfer_bytes_total{direction="sent"}')
            assert sent > 300 * 16 << 10


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
async def test_a_link_that_breaks_in_the_middle_costs_no_stream_and_no_block(weights: Path, nixl: Path) -> None:
    """Decode 1 is beside prefill, decode 0 behind the link, which breaks for a while."""
    with namespaces() as ends:
        (near, near_host), (far, far_host) = ends
        more = {"ucx_tls": "tcp", "nixl_over_tcp": True}
        here = {"within": near, "host": near_host, "kv_interface": "kvs0", **more}
        there = {"within": far, "host": far_host, "kv_interface": "kvr0", **more}
        members = [member(weights, nixl, "prefill-0", **here), member(weights, nixl, "decode-0", **there),
                   member(weights, nixl, "decode-1", **here)]  # fmt: skip
        async with deployment(weights, members, 2) as served:
            async with served.load():
                for state, seconds in (("down", 8.0), ("up", 0.0)):
                    subprocess.run(["ip", "-n", far[-1], "link", "set", "kvr0", state], check=True, capture_output=True)
                    await asyncio.sleep(seconds)
                await served.until_paired(2)
            await served.nothing_is_held()
