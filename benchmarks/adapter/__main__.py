"""Measure what the adapter adds, and write benchmarks/results/adapter.md.

The same requests are sent to a scripted engine directly, through an adapter in front of it, and
through a relay that passes bytes on without reading them: what any process in between costs. Each
process has an event loop of its own. Two things are measured: the time that the process in between
computes, and how much later a client gets a token whose first value is the time at which the engine
has sent it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.adapter.scripted_engine import MODEL, time_token
from benchmarks.machine import machine
from disagg_wire.cluster_key import bearer_of
from disagg_wire.environment import AdapterVariable
from disagg_wire.protocol import DECODE_PATH, READY_PATH

REPO = Path(__file__).resolve().parents[2]
REPORT = REPO / "benchmarks" / "results" / "adapter.md"
LIMIT_TOKEN_US, LIMIT_REQUEST_US = 50.0, 1000.0
_READY_S = 60.0
_REQUESTS = 100
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """Streams that run at the same time."""

    name: str
    streams: int
    tokens: int
    """Of one stream."""
    piece: int
    """Tokens in one chunk of the engine."""
    pause_us: int
    """Between two chunks of a stream."""


LOADS = (
    Load("1 stream, a token every 2 ms", 1, 400, 1, 2000),
    Load("16 streams, a token every 20 ms each", 16, 40, 1, 20_000),
    Load("16 streams, 4 tokens every 20 ms each", 16, 160, 4, 20_000),
    Load("1 stream, as fast as it goes", 1, 5000, 1, 0),
)


@dataclass(frozen=True)
class Measured:
    """One load, directly and through the adapter."""

    load: Load
    direct_us: float
    """The median age of a token when the client has it."""
    through_us: float
    processor_us: float
    """Of the adapter for one token."""
    relay_us: float
    """Of a bare relay for one token."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def processor_s(pid: int) -> float:
    """Return the seconds that a process has computed, as the kernel counts them for its threads."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0]) / 1e9
        except (OSError, IndexError):
            user, system = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / _TICKS
    return total


def direct_body(prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    return {"token_ids": list(prompt), "sampling_params": {"max_tokens": tokens}, "model": MODEL, "stream": True}


def through_body(prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    return {
        "request_id": secrets.token_hex(16),
        "epoch": 0,
        "mode": "local",
        "tokens": list(prompt),
        "prompt_tokens": len(prompt),
        "sampling": {"seed": 1, "max_new_tokens": tokens, "temperature": 0.0},
        "deadline_s": 600.0,
    }


@dataclass(frozen=True)
class Way:
    """A way to the engine."""

    url: str
    headers: dict[str, str]
    through: bool

    async def ages_us(self, session: aiohttp.ClientSession, prompt: Sequence[int], tokens: int) -> list[float]:
        """Read a stream; return how old each chunk's first token was when it came."""
        make, path = (through_body, DECODE_PATH) if self.through else (direct_body, "/inference/v1/generate")
        ages, held, found = [], b"", 0
        async with session.post(self.url + path, json=make(prompt, tokens), headers=self.headers) as answer:
            assert answer.status == 200, await answer.text()
            async for piece in answer.content.iter_any():
                now = time_token()
                *lines, held = (held + piece).split(b"\n")
                for line in lines:
                    for token in self._tokens(line):
                        found += 1
                        if token > 1:
                            ages.append((now - token) * 10.0)
        assert found == tokens, f"{found} of {tokens} tokens"
        return ages

    def _tokens(self, line: bytes) -> list[int]:
        if self.through:
            event = json.loads(line)
            assert event["type"] != "error", event
            return [event["token"]] if event["type"] == "token" else []
        if not line.startswith(b"data: {"):
            return []
        return [t for choice in json.loads(line[6:])["choices"] for t in choice["token_ids"]]

    async def load(self, load: Load) -> list[float]:
        async with aiohttp.ClientSession() as session:
            prompt = (5, load.piece, load.pause_us)
            found = await asyncio.gather(*(self.ages_us(session, prompt, load.tokens) for _ in range(load.streams)))
        return [age for ages in found for age in ages]

    async def request_us(self, count: int, prompt_tokens: int) -> float:
        """Return the median duration of a request for one token, one after another."""
        prompt, durations = (5, 1, 0, *[7] * (prompt_tokens - 3)), []
        async with aiohttp.ClientSession() as session:
            for _ in range(count):
                started_s = time.perf_counter()
                await self.ages_us(session, prompt, 1)
                durations.append((time.perf_counter() - started_s) * 1e6)
        return statistics.median(durations)


@dataclass(frozen=True)
class Started:
    """The ways to the engine, and the processes in between."""

    direct: Way
    relayed: Way
    through: Way
    adapter_pid: int
    relay_pid: int


def adapter_variables(folder: Path, engine_port: int) -> dict[str, str]:
    """Return the variables of an adapter of the scripted engine, whose files are in `folder`."""
    found = {
        AdapterVariable.ROLE: "both",
        AdapterVariable.ENGINE: "vllm",
        AdapterVariable.ENGINE_PORT: str(engine_port),
        AdapterVariable.MODEL_URI: "file:///model",
        AdapterVariable.MODEL_NAME: MODEL,
        AdapterVariable.MODEL_FILES: str(folder),
        AdapterVariable.CLUSTER_KEY_FILE: str(folder / "key"),
        AdapterVariable.KV_PORT: "0",
        AdapterVariable.DRAIN_TIMEOUT_S: "5",
    }
    return {str(name): value for name, value in found.items()}


@asynccontextmanager
async def processes(folder: Path) -> AsyncIterator[Started]:
    """Start all three."""
    key = secrets.token_hex(32)
    (folder / "key").write_text(key)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 1 << 31, "num_hidden_layers": 1, "hidden_size": 8}))
    (folder / "tokenizer.json").write_text("{}")
    engine_port, port, relay_port = free_port(), free_port(), free_port()
    path = os.pathsep.join(str(REPO / name) for name in (".", "worker"))
    variables = adapter_variables(folder, engine_port) | {AdapterVariable.PORT: str(port)}
    environment = os.environ | {"PYTHONPATH": path}
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.adapter.scripted_engine", str(engine_port), env=environment
    )
    relay = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.adapter.relay", str(relay_port), str(engine_port), env=environment
    )
    adapter = await asyncio.create_subprocess_exec(sys.executable, "-m", "disagg_adapter", env=environment | variables)
    try:
        url, relayed = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{relay_port}"
        await _ready(url)
        await _ready(relayed, "/health")
        headers = {"authorization": f"Bearer {bearer_of(key.encode())}"}
        yield Started(
            direct=Way(f"http://127.0.0.1:{engine_port}", {}, False),
            relayed=Way(relayed, {}, False),
            through=Way(url, headers, True),
            adapter_pid=adapter.pid,
            relay_pid=relay.pid,
        )
    finally:
        for process in (adapter, relay, engine):
            process.terminate()
            await process.wait()


async def _ready(url: str, path: str = READY_PATH) -> None:
    async with asyncio.timeout(_READY_S), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url + path) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def measure(rounds: int) -> str:
    """Return the report."""
    with tempfile.TemporaryDirectory() as folder:
        async with processes(Path(folder)) as started:
            through, pid = started.through, started.adapter_pid
            await through.load(LOADS[-1])  # caches and connections
            loads = [await _measured(load, started, rounds) for load in LOADS]
            requests = []
            for size in (16, 1500):
                plain, adapted, own = [], [], []
                for _ in range(rounds):
                    plain.append(await started.direct.request_us(_REQUESTS, size))
                    before_s = processor_s(pid)
                    adapted.append(await through.request_us(_REQUESTS, size))
                    own.append((processor_s(pid) - before_s) * 1e6 / _REQUESTS)
                requests.append((size, min(plain), min(adapted), min(own)))
    return report(loads, requests)


async def _measured(load: Load, started: Started, rounds: int) -> Measured:
    plain, adapted, own, relay = [], [], [], []
    for _ in range(rounds):
        plain.append(statistics.median(await started.direct.load(load)))
        own_us, ages = await _computed(load, started.through, started.adapter_pid)
        own.append(own_us)
        adapted.append(statistics.median(ages))
        relay.append((await _computed(load, started.relayed, started.relay_pid))[0])
    # Whatever else the machine does only adds.
    return Measured(load, min(plain), min(adapted), min(own), min(relay))


async def _computed(load: Load, way: Way, pid: int) -> tuple[float, list[float]]:
    """Return the microseconds that a process computes for one token, and the tokens' ages."""
    before_s = processor_s(pid)
    ages = await way.load(load)
    return (processor_s(pid) - before_s) * 1e6 / (load.streams * load.tokens), ages


def report(loads: Sequence[Measured], requests: Sequence[tuple[int, float, float, float]]) -> str:
    busy = os.getloadavg()[2]
    lines = [
        "# What the adapter adds",
        "",
        f"`make bench-adapter`, {time.strftime('%Y-%m-%d', time.gmtime())}, on {machine()}.",
        f"The load average of the 15 minutes was {busy:.1f}: with more than one process for each core, all times are",
        "longer. A scripted engine sends the events of vLLM; it computes nothing. The age of a token is the time from",
        "its sending by the engine to its arrival at the client, as a median; each number is the least of several",
        "rounds. The adapter's own time is what the kernel counts for its process, calls of the kernel and the",
        "engine's metrics, which it reads twice a second, included. A bare relay, which passes bytes on and reads",
        "nothing, is what any process in between costs.",
        "",
        "| load | age, directly | age, through the adapter | added | own time a token | a bare relay's |",
        "|---|---|---|---|---|---|",
    ]
    for m in loads:
        # An unbounded stream queues up in front of whoever is slowest: its ages say nothing.
        paced = m.load.pause_us > 0
        ages = [f"{us:.0f} us" if paced else "-" for us in (m.direct_us, m.through_us, m.through_us - m.direct_us)]
        lines.append(f"| {m.load.name} | {' | '.join(ages)} | {m.processor_us:.1f} us | {m.relay_us:.1f} us |")
    lines += [
        "",
        "| a request for one token, of a prompt of | directly | through the adapter | added | own time |",
        "|---|---|---|---|---|",
    ]
    for size, plain, adapted, own in requests:
        row = " | ".join(f"{us:.0f} us" for us in (plain, adapted, adapted - plain, own))
        lines.append(f"| {size} tokens | {row} |")
    lines += ["", f"The limits are {LIMIT_TOKEN_US:.0f} us a token and {LIMIT_REQUEST_US / 1000:.0f} ms a request.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the adapter adds.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        text = runner.run(measure(options.rounds))
    print(text)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
