"""A real vLLM on the CPU as processes of this machine, on free ports of the loopback interface.

It is installed by e2e/engines/vllm/install.py, which says what is changed in it, and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from disagg_wire.roles import BOTH, DECODE, PREFILL

REPO = Path(__file__).parents[2]
MODEL = REPO / "models" / "stdlib-llama"
MODEL_NAME = "m"
INSTALL = REPO / "e2e" / "engines" / "vllm" / "install.py"
# The newest for the CPU, and the one before it that has the token API.
NEWEST, BEFORE = "0.32.0", "0.31.0"
LEASE_S = 20.0
BLOCK_SIZE = 32
# Downloads of 1 GB and two minutes; a start, which takes 30 s when three start at once on two idle
# cores and six times as long on busy ones.
_INSTALL_S, _START_S, _STOP_S, _TRACKER_S = 1200.0, 400.0, 30.0, 10.0
# Below the ports that the kernel gives to connections: an engine listens after ten seconds, when
# one of those would belong to another process.
_PORTS = range(20_000, 30_000)
_KV_ROLES = {PREFILL: "kv_producer", DECODE: "kv_consumer"}
# For the first of the two requests of a hand-over.
HAND_OVER: Mapping[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"not {count} ports of {_PORTS} are free")


async def installed(version: str = NEWEST) -> Path:
    """Return the folder of that version, which is installed first if it is not there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(INSTALL), version, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), _INSTALL_S)
    if process.returncode != 0:
        raise RuntimeError(f"vLLM {version} cannot be installed:\n{err.decode()[-3000:]}")
    return Path(out.decode().splitlines()[-1])


class Vllm:
    """One engine: its three processes, their log, and its HTTP interface."""

    def __init__(self, role: str, process: asyncio.subprocess.Process, log: Path, ports: tuple[int, int]) -> None:
        self.role = role
        self.process = process
        self.log = log
        self.port, self.side_channel_port = ports
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.AsyncClient(base_url=self.url, timeout=60.0, trust_env=False)

    async def wait_ready(self) -> None:
        """Wait until /health answers 200. Raises RuntimeError with the end of the log."""
        try:
            async with asyncio.timeout(_START_S):
                while self.process.returncode is None:
                    with contextlib.suppress(httpx.TransportError):
                        if (await self.http.get("/health")).status_code == 200:
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise RuntimeError(f"the {self.role} engine is not ready after {_START_S:g} s:\n{self.log_end()}") from None
        raise RuntimeError(f"the {self.role} engine ended with {self.process.returncode}:\n{self.log_end()}")

    def log_end(self, characters: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    async def generate(self, token_ids: list[int], max_tokens: int, **more: Any) -> dict[str, Any]:
        """Return the answer to an unstreamed greedy request, whose body `more` adds to.

        Raises AssertionError with the end of the log unless it is 200.
        """
        sampling = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, "detokenize": False}
        body = {"model": MODEL_NAME, "token_ids": token_ids, "sampling_params": sampling, "stream": False, **more}
        answer = await self.http.post("/inference/v1/generate", json=body)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}\n{self.log_end()}"
        found: dict[str, Any] = answer.json()
        return found

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the series of one metric that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        text = (await self.http.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.split()[-1]) for line in lines if all(label in line for label in wanted))

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the engine, as of a whole container."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    async def stop(self) -> None:
        """End it as Kubernetes would, then kill what is left."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), _STOP_S)
        await self.kill()

    async def kill(self) -> None:
        """Kill all processes at once, as the end of a container does.

        Python's own trackers of shared memory may live on for a moment: they see that the others
        are dead, and then remove 160 MB from /dev/shm that nobody else would.
        """
        for pid, command in self.living().items():
            if "resource_tracker" not in command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._continue()
        await self.process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TRACKER_S):
                while self.living():  # noqa: ASYNC110  no event tells of them
                    await asyncio.sleep(0.05)
        self.signal_all(signal.SIGKILL)
        await self.http.aclose()

    def _continue(self) -> None:
        """Wake the trackers, if a test has stopped all processes."""
        self.signal_all(signal.SIGCONT)

    def living(self) -> dict[int, str]:
        """Return the command lines of the engine's processes that are no zombies, by pid."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.process.pid and state not in "ZX":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        return found


def _arguments(role: str, port: int, model: Path) -> list[str]:
    words = ["serve", str(model), "--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    # In bfloat16 the first small step of an engine ends with SIGILL on processors with AMX. With
    # eager execution and a size of the cache in bytes it starts without a warm-up.
    words += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(128 << 20)]
    words += ["--block-size", str(BLOCK_SIZE), "--max-num-seqs", "16"]
    words += ["--enable-scale-out", "--enable-prompt-tokens-details"]
    if role != BOTH:
        connector = {
            "kv_connector": "NixlConnector",
            "kv_role": _KV_ROLES[role],
            "kv_buffer_device": "cpu",
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {"kv_lease_duration": LEASE_S, "backends": ["UCX"]},
        }
        words += ["--kv-transfer-config", json.dumps(connector)]
    return words


def _environment(side_channel_port: int, folder: Path) -> dict[str, str]:
    # The folder for compiled modules of this project's tests must not be the engine's: its own are
    # beside its sources.
    foreign = ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "VLLM_CPU_KVCACHE_SPACE")
    return {name: value for name, value in os.environ.items() if name not in foreign} | {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "UCX_TLS": "tcp",
        "UCX_NET_DEVICES": "lo",
        "HF_HUB_OFFLINE": "1",
        # Log probabilities would be compiled, for which the slim install has no headers.
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_channel_port),
    }


@contextlib.asynccontextmanager
async def vllm(folder: Path, role: str, *more: str, version: str = NEWEST, model: Path = MODEL) -> AsyncIterator[Vllm]:
    """Start an engine (`both` has no connector), yield it at once, and end all of its processes.

    `more` is added to its arguments. Several that start at once are awaited with `wait_ready`.
    """
    program = await installed(version) / "bin" / "vllm"
    port, side_channel_port = _free_ports(2)
    log = folder / f"vllm-{role}-{port}.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            str(program), *_arguments(role, port, model), *more, env=_environment(side_channel_port, folder),
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    engine = Vllm(role, process, log, (port, side_channel_port))
    try:
        yield engine
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def engines(folder: Path, *roles: str, version: str = NEWEST) -> AsyncIterator[list[Vllm]]:
    """Start an engine for each role, all at once, and yield them when all are ready."""
    async with contextlib.AsyncExitStack() as stack:
        started = [await stack.enter_async_context(vllm(folder, role, version=version)) for role in roles]
        await asyncio.gather(*(engine.wait_ready() for engine in started))
        yield started
