"""Compare the router with nginx as a plain reverse proxy, and write benchmarks/results/router.md.

In every round, the same requests go to the simulated workers directly, through nginx, and through
the router, one after another, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from benchmarks.adapter.__main__ import free_port, processor_s
from benchmarks.machine import machine
from benchmarks.processes import ROOT, process
from benchmarks.router.load import PROMPT, Generator, Load, Measured
from benchmarks.router.nginx import nginx, version
from benchmarks.router.simulated_workers import MODEL, PREFILL_S
from disagg_wire.environment import RouterVariable

REPORT = ROOT / "benchmarks" / "results" / "router.md"
# Some 70 requests at a time, each with some tokens.
_REQUESTS = {"rate": 200.0, "tokens": 16, "pause_us": 20_000}
# Few requests with many tokens.
_EVENTS = {"rate": 4.0, "tokens": 400, "pause_us": 5_000}
_READY_S = 30.0
# The router that traces, and the share of the traces that it keeps.
_TRACED, _SHARE = "router, traced", 0.01
# The generator says less of the others when it is late itself, or has no time left.
_MOST_SHARE, _MOST_LATE_MS = 0.7, 5.0


@dataclass
class Target:
    """A way to the workers, and its processes."""

    port: int
    pids: list[int]
    runs: list[Measured] = field(default_factory=list)


@contextmanager
def targets() -> Iterator[dict[str, Target]]:
    """Start the workers, nginx and the router."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        prefill, decode, front, port, traced, sink = (free_port() for _ in range(6))
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'worker'}"}
        command = [sys.executable, "-m", "benchmarks.router.simulated_workers", str(prefill), str(decode)]
        workers = stack.enter_context(subprocess.Popen(command, env=environment))
        stack.callback(workers.terminate)
        (folder / "key").write_text(secrets.token_hex(32))
        listed = [
            {"name": role, "url": f"http://127.0.0.1:{at}"} for role, at in (("prefill", prefill), ("decode", decode))
        ]
        (folder / "members.json").write_text(json.dumps({"workers": listed}))
        _open(decode)
        pids = stack.enter_context(nginx(folder, front, decode))
        settings = {
            RouterVariable.PORT: port,
            RouterVariable.MODEL_NAME: MODEL,
            RouterVariable.CLUSTER_KEY_FILE: folder / "key",
            RouterVariable.MEMBERSHIP: f"file://{folder / 'members.json'}",
        }
        named = {str(variable).removeprefix("DISAGG_").lower(): value for variable, value in settings.items()}
        router = stack.enter_context(process("disagg_router", folder / "router.log", **named))
        command = [sys.executable, "-m", "benchmarks.router.trace_sink", str(sink)]
        collector = stack.enter_context(subprocess.Popen(command, env=environment))
        stack.callback(collector.terminate)
        named |= {"port": traced, "tracing_endpoint": f"http://127.0.0.1:{sink}", "tracing_sampling_ratio": _SHARE}
        tracing = stack.enter_context(process("disagg_router", folder / "tracing.log", **named))
        for at in (front, port, sink, traced):
            _open(at)
        yield {
            "directly": Target(decode, [workers.pid]),
            "nginx": Target(front, pids),
            "router": Target(port, [router.pid]),
            _TRACED: Target(traced, [tracing.pid]),
        }


def _open(port: int) -> None:
    """Wait until somebody listens. Raises SystemExit."""
    until_s = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > until_s:
                raise SystemExit(f"nobody listens on port {port}") from None
            time.sleep(0.05)


async def _warm(target: Target) -> None:
    """Send requests until one is answered, and then some more."""
    until_s = time.monotonic() + _READY_S
    while True:
        try:
            generator = Generator(target.port)
            await generator.run(Load(50.0, 1.0, 4, 1000), seed=0)
            generator.close()
            return
        except* (RuntimeError, OSError):
            if time.monotonic() > until_s:
                raise
        await asyncio.sleep(0.2)


async def measure(ways: dict[str, Target], load: Load, rounds: int) -> None:
    """Run a load on every target in turn, and keep what is measured in its runs."""
    generators = {name: Generator(way.port) for name, way in ways.items()}
    for way in ways.values():
        way.runs.clear()
    for number in range(rounds):
        for name, way in ways.items():
            before_s = sum(map(processor_s, way.pids))
            run = await generators[name].run(load, seed=number)
            run.processor_s = sum(map(processor_s, way.pids)) - before_s
            way.runs.append(run)
    for generator in generators.values():
        generator.close()


def _median(runs: Sequence[float]) -> float:
    return statistics.median(runs)


def latency_rows(ways: dict[str, Target]) -> list[str]:
    """Return the lines of the table of requests."""
    plain = ways["directly"].runs
    rows = []
    for name, way in ways.items():
        p50, p99 = (_median([r.quantile_ms(r.ttft_s, q) for r in way.runs]) for q in (50, 99))
        added = [
            _median(
                [r.quantile_ms(r.ttft_s, q) - d.quantile_ms(d.ttft_s, q) for r, d in zip(way.runs, plain, strict=True)]
            )
            for q in (50, 99)
        ]
        cost_ms = 1e3 * _median([r.processor_s / r.requests for r in way.runs])
        shown = ["-", "-", "-"] if name == "directly" else [f"{added[0]:.2f}", f"{added[1]:.2f}", f"{cost_ms:.2f}"]
        rows.append(f"| {name} | {p50:.2f} | {p99:.2f} | {' | '.join(shown)} |")
    return rows


def event_rows(ways: dict[str, Target]) -> list[str]:
    """Return the lines of the table of token events."""
    speed = {
        name: _median([r.events / r.processor_s for r in way.runs]) for name, way in ways.items() if name != "directly"
    }
    return [f"| {name} | {value:,.0f} | {value / speed['nginx']:.3f} |" for name, value in speed.items()]


def generator_line(ways: dict[str, Target]) -> str:
    """Return what the generator has to say of itself."""
    runs = [run for way in ways.values() for run in way.runs]
    share = max(run.generator_share for run in runs)
    late_ms = max(run.quantile_ms(run.late_s, 99) for run in runs)
    bad = share > _MOST_SHARE or late_ms > _MOST_LATE_MS
    verdict = "**it may have been the bottleneck**" if bad else "it was not the bottleneck"
    return f"The generator used up to {share:.2f} of a core and sent up to {late_ms:.1f} ms late (p99): {verdict}."


_PAGE = """# The router beside nginx

`make bench-router`, {date}, on {machine}; {nginx}.
Load average at the start {start:.1f}, at the end {end:.1f}, niceness {nice}. Shown are medians of {rounds} rounds; in
every round the same requests go to each, one after another.

The workers are simulated: a prompt takes {prefill_ms:.0f} ms. nginx is one process that passes bytes on to one of them.
The router, one process too, checks the request, tokenizes its prompt ({chars} characters), reserves at the decode
worker, has the prompt prefilled by the other one, and turns tokens into text. The processor time is what the kernel
counts for the processes, its own calls included. A second router, `router, traced`, keeps {share:.0%} of the traces
and sends them to a collector that takes everything.

{rate:.0f} requests a second at random times, {tokens} tokens each, one every {pause_ms:.0f} ms:

| way | TTFT p50, ms | p99, ms | added p50, ms | added p99, ms | CPU a request, ms |
|---|---|---|---|---|---|
{latency}

{latency_generator}

{event_rate:.0f} requests a second of {event_tokens} tokens, one every {event_pause_ms:.0f} ms:

| way | token events a CPU-second | ratio |
|---|---|---|
{events}

{event_generator}
"""


async def report(rounds: int, seconds: float) -> str:
    """Measure, and return the page."""
    start = os.getloadavg()[0]
    with targets() as ways:
        for way in ways.values():
            await _warm(way)
        requests = Load(_REQUESTS["rate"], seconds, int(_REQUESTS["tokens"]), int(_REQUESTS["pause_us"]))
        await measure(ways, requests, rounds)
        latency, latency_generator = latency_rows(ways), generator_line(ways)
        events = Load(_EVENTS["rate"], seconds, int(_EVENTS["tokens"]), int(_EVENTS["pause_us"]))
        await measure(ways, events, rounds)
        return _PAGE.format(
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            machine=machine(),
            nginx=version(),
            start=start,
            end=os.getloadavg()[0],
            nice=os.nice(0),
            rounds=rounds,
            prefill_ms=1e3 * PREFILL_S,
            chars=len(PROMPT),
            share=_SHARE,
            rate=requests.rate,
            tokens=requests.tokens,
            pause_ms=requests.pause_us / 1e3,
            latency="\n".join(latency),
            latency_generator=latency_generator,
            event_rate=events.rate,
            event_tokens=events.tokens,
            event_pause_ms=events.pause_us / 1e3,
            events="\n".join(event_rows(ways)),
            event_generator=generator_line(ways),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the router with nginx.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--stdout", action="store_true", help="write no page")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        text = runner.run(report(options.rounds, options.seconds))
    print(text)
    if not options.stdout:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
