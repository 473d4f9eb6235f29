"""Workers with NIXL as processes behind a router, under a steady load, of which a test kills,
freezes or cuts off one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.ports import free_port
from tests.protocol.client import HEADERS
from tests.worker.server.process_rig import REPO
from tests.worker.server.rig import prompt

from disagg_router.main import server_of
from disagg_router.router import Router
from disagg_router.settings import Settings

WAIT_S = 120.0
STREAMS = 10
NEW = 40


@dataclass
class Member:
    """A worker, which keeps its addresses when it is started again."""

    name: str
    environment: dict[str, str]
    within: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self, folder: Path) -> None:
        with (folder / f"{self.name}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.within, sys.executable, "-m", "disagg_worker", env=self.environment, stderr=log, stdout=log
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


def member(folder: Path, nixl: Path, name: str, **more: Any) -> Member:
    """Return a worker whose role is the start of its name. `more` are variables without DISAGG_."""
    made = Member(name, {}, more.pop("within", ()), more.get("host", "127.0.0.1"))
    tls = more.pop("ucx_tls")
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPYCACHEPREFIX") if key in os.environ}
    variables = {
        "ROLE": name.partition("-")[0],
        "MODEL_URI": f"file://{folder}",
        "MODEL_NAME": "m",
        "CLUSTER_KEY_FILE": folder / "key",
        "PORT": made.port,
        "KV_PORT": free_port(),
        "POD_NAME": name,
        "POD_UID": name,
        "PREFIX_CACHE": "false",
        "KV_CACHE_BYTES": 192 << 20,
        **{key.upper(): value for key, value in more.items()},
    }
    made.environment = kept | {"PYTHONPATH": f"{REPO / 'worker'}:{nixl}", "OMP_NUM_THREADS": "1", "UCX_TLS": tls}
    made.environment |= {f"DISAGG_{key}": str(value) for key, value in variables.items()}
    return made


@dataclass
class Deployment:
    """A router over HTTP, and its workers."""

    http: httpx.AsyncClient
    router: Router
    members: dict[str, Member]
    folder: Path

    async def ask(self, number: int) -> str:
        """Return the text of a stream, which must end well."""
        sampled = {"temperature": 0.8, "top_p": 0.9, "seed": number} if number % 2 else {"temperature": 0}
        asked = {"model": "m", "prompt": prompt(300 + 97 * number, start=number), "max_tokens": NEW, "stream": True}
        text, ended = "", False
        async with self.http.stream("POST", "/v1/completions", json=asked | sampled | {"ignore_eos": True}) as answer:
            assert answer.status_code == 200, (await answer.aread()).decode()
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                ended = line == "data: [DONE]"
                if not ended:
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    text += "".join(choice["text"] for choice in event["choices"])
        assert ended
        return text

    @contextlib.asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Keep streams running, each of which must be the one of the undisturbed run."""
        expected = await asyncio.gather(*(self.ask(i) for i in range(STREAMS)))
        assert len(set(expected)) == STREAMS
        over = asyncio.Event()

        async def client(number: int) -> int:
            rounds = 0
            while not over.is_set():
                assert await self.ask(number) == expected[number], number
                rounds += 1
            return rounds

        clients = [asyncio.create_task(client(i)) for i in range(STREAMS)]
        try:
            yield
        finally:
            over.set()
            assert all(rounds > 0 for rounds in await asyncio.gather(*clients))

    async def until_paired(self, expected: int | None = None) -> None:
        """Wait until every pair has shaken hands, of the expected number."""
        async with asyncio.timeout(WAIT_S):
            while True:
                counts = self.router.handshakes.counts()
                if counts["healthy"] == counts["expected"] == (expected or counts["expected"]) > 0:
                    return
                await asyncio.sleep(0.05)

    async def info(self, name: str) -> dict[str, Any]:
        async with httpx.AsyncClient(headers=HEADERS, trust_env=False, timeout=30) as http:
            return dict((await http.get(f"{self.members[name].url}/internal/v1/info")).json())

    async def counted(self, name: str, series: str) -> float:
        async with httpx.AsyncClient(headers=HEADERS, trust_env=False, timeout=30) as http:
            page = (await http.get(f"{self.members[name].url}/metrics")).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(series))

    async def nothing_is_held(self) -> None:
        """Wait until every block of every worker is free, and none is in quarantine."""
        for name in self.members:
            async with asyncio.timeout(WAIT_S):
                while True:
                    kv, held = (await self.info(name))["kv"], await self.counted(name, "disagg_kv_quarantined_blocks ")
                    if kv["blocks_free"] == kv["blocks_total"] and not held:
                        break
                    await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def deployment(folder: Path, members: Sequence[Member], pairs: int) -> AsyncIterator[Deployment]:
    """Run a router and its workers, until every pair has shaken hands."""
    listed = [{"name": one.name, "url": one.url} for one in members]
    state = folder / f"members-{secrets.token_hex(4)}.json"
    state.write_text(json.dumps({"workers": listed}))
    values = {"model_name": "m", "cluster_key_file": folder / "key", "poll_interval_s": 0.1,
              "membership": f"file://{state}", "local_prefill_max_tokens": 0}  # fmt: skip
    router = Router(Settings.model_validate(values))
    server = server_of(router)
    async with contextlib.AsyncExitStack() as stack:
        for one in members:
            await one.start(folder)
            stack.push_async_callback(_end, one)
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        tasks = [asyncio.create_task(router.run()), asyncio.create_task(server.serve(sockets=[sock]))]
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False, timeout=WAIT_S))
        try:
            served = Deployment(http, router, {m.name: m for m in members}, folder)
            await served.until_paired(pairs)
            yield served
        finally:
            server.should_exit = True
            await tasks[1]
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            await router.close()


async def _end(one: Member) -> None:
    if one.process is not None and one.process.returncode is None:
        one.process.kill()
    if one.process is not None:
        await one.process.wait()
