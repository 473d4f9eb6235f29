"""The data plane as it runs in production: worker processes, here on the loopback interface, and a
router in front of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from tests.ports import free_port
from tests.worker.oracle import MODEL

from disagg_router.router import Router
from disagg_router.settings import Settings

REPO = Path(__file__).parents[2]
WAIT_S = 120.0


@contextlib.asynccontextmanager
async def workers(
    folder: Path,
    roles: list[str],
    module: str = "disagg_worker",
    within: Mapping[str, tuple[Sequence[str], str]] | None = None,
    /,
    **settings: str,
) -> AsyncIterator[dict[str, asyncio.subprocess.Process]]:
    """Run a process for each role and list them in the membership file `folder`/workers.json.

    `within` has what goes before a command, and the address, by the name of a worker. On exit the
    processes drain and must end with status 0, but for those that the test has killed.
    """
    key = folder / "key"
    if not key.exists():
        key.write_text(secrets.token_hex(32))
    processes: dict[str, asyncio.subprocess.Process] = {}
    members = []
    for i, role in enumerate(roles):
        name, port = f"{role}-{i}", free_port()
        before, host = (within or {}).get(name, ((), "127.0.0.1"))
        environment = {
            **os.environ,
            "PYTHONPATH": f"{REPO / 'worker'}:{REPO}",
            "OMP_NUM_THREADS": "1",
            "DISAGG_ROLE": role,
            "DISAGG_MODEL_URI": f"file://{MODEL}",
            "DISAGG_MODEL_NAME": MODEL.name,
            "DISAGG_CLUSTER_KEY_FILE": str(key),
            "DISAGG_HOST": host,
            "DISAGG_PORT": str(port),
            "DISAGG_KV_PORT": "0",
            "DISAGG_POD_NAME": name,
            **{f"DISAGG_{k.upper()}": v for k, v in settings.items()},
        }
        with (folder / f"{name}.log").open("wb") as log:
            processes[name] = await asyncio.create_subprocess_exec(
                *before, sys.executable, "-m", module, env=environment, stdout=log, stderr=log
            )
        members.append({"name": name, "url": f"http://{host}:{port}"})
    (folder / "workers.json").write_text(json.dumps({"workers": members}))
    try:
        yield processes
    except BaseException as failure:
        failure.add_note(_ended(folder, processes))
        raise
    finally:
        for process in processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(p.wait() for p in processes.values()))
        finally:
            for process in processes.values():
                if process.returncode is None:
                    process.kill()
    assert {p.returncode for p in processes.values()} <= {0, -signal.SIGKILL}, _ended(folder, processes)


def _ended(folder: Path, processes: Mapping[str, asyncio.subprocess.Process]) -> str:
    """Return the statuses of the processes that have ended, and the ends of their logs."""
    statuses = {name: p.returncode for name, p in processes.items() if p.returncode is not None}
    ends = [f"{name}: status {s}\n{(folder / f'{name}.log').read_text()[-2000:]}" for name, s in statuses.items()]
    return "\n".join(ends or ["all workers ran"])


@contextlib.asynccontextmanager
async def router(folder: Path, **settings: str) -> AsyncIterator[Router]:
    """Run a router in this process and yield it once every pair of workers has shaken hands."""
    raw = {
        "model_name": MODEL.name,
        "cluster_key_file": folder / "key",
        "membership": f"file://{folder}/workers.json",
        "poll_interval_s": 0.2,
        **settings,
    }
    one = Router(Settings.model_validate(raw))
    background = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(WAIT_S):
            while not (counts := one.handshakes.counts())["expected"] or counts["healthy"] < counts["expected"]:
                if background.done():
                    background.result()
                await asyncio.sleep(0.05)
        yield one
    finally:
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)
        await one.client.close()
