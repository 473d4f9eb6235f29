"""Tests of what the benchmark of the router is made of: its workers and its load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.router import __main__ as benchmark
from benchmarks.router.load import Generator, Load, Measured
from benchmarks.router.simulated_workers import MODEL, Connection, Workers
from tests.fakes.token_worker import KEY

from disagg_router import settings
from disagg_router.main import server_of
from disagg_router.router import Router

LOAD = Load(rate=50, seconds=0.4, tokens=5, pause_us=1000)


@asynccontextmanager
async def workers() -> AsyncIterator[dict[str, int]]:
    """Serve both workers in this loop; yields their ports."""
    both, loop, ports, servers = Workers(), asyncio.get_running_loop(), {}, []
    for role in ("prefill", "decode"):
        server = await loop.create_server(lambda role=role: Connection(both, role), "127.0.0.1", 0)  # type: ignore[misc]
        servers.append(server)
        ports[role] = server.sockets[0].getsockname()[1]
    try:
        yield ports
    finally:
        for server in servers:
            server.close()


async def run(port: int) -> Measured:
    generator = Generator(port)
    out = await generator.run(LOAD, seed=1)
    generator.close()
    await asyncio.sleep(0)  # the transports close with the next turn of the loop
    return out


async def test_the_generator_sees_every_token_of_the_workers() -> None:
    async with workers() as ports:
        out = await run(ports["decode"])
    assert out.requests == len(out.late_s) > 5
    assert out.events == LOAD.tokens * out.requests


async def test_through_the_router_it_sees_as_many(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    async with workers() as ports:
        listed = ", ".join(f'{{"name": "{role}", "url": "http://127.0.0.1:{port}"}}' for role, port in ports.items())
        (tmp_path / "members.json").write_text(f'{{"workers": [{listed}]}}')
        values = {"model_name": MODEL, "cluster_key_file": tmp_path / "key", "port": 0, "poll_interval_s": 0.05}
        router = Router(
            settings.Settings.model_validate(values | {"membership": f"file://{tmp_path / 'members.json'}"})
        )
        server = server_of(router)
        background, serving = asyncio.create_task(router.run()), asyncio.create_task(server.serve())
        async with asyncio.timeout(60):
            while not (server.started and router.handshakes.counts()["healthy"] == 1):
                await asyncio.sleep(0.01)
        out = await run(server.servers[0].sockets[0].getsockname()[1])
        server.should_exit = True
        await serving
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)
        await router.close()
    assert out.requests > 5
    assert out.events == LOAD.tokens * out.requests


def test_the_rows_compare_the_ways() -> None:
    def way(ttft_s: float, processor_s: float) -> benchmark.Target:
        run = Measured([ttft_s] * 100, [0.0] * 100, 1000, 0.1, processor_s)
        return benchmark.Target(1, [], [run, run])

    ways = {"directly": way(0.010, 1.0), "nginx": way(0.011, 0.1), "router": way(0.014, 0.4)}
    assert benchmark.latency_rows(ways)[1:] == [
        "| nginx | 11.00 | 11.00 | 1.00 | 1.00 | 1.00 |",
        "| router | 14.00 | 14.00 | 4.00 | 4.00 | 4.00 |",
    ]
    assert benchmark.event_rows(ways) == ["| nginx | 10,000 | 1.000 |", "| router | 2,500 | 0.250 |"]
    assert "not the bottleneck" in benchmark.generator_line(ways)
    ways["router"].runs[0].late_s[-5:] = [0.02] * 5
    assert "may have been" in benchmark.generator_line(ways)
