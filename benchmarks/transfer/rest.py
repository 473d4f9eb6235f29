"""Measure where the rest of a prompt is prefilled sooner, whose start decode has: there, or by a
prefill worker, and what the streams that decode runs meanwhile feel of it.

Alone, it prints its table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import secrets
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.processes import ROOT, process

MISSING = (16, 64, 256, 1024)
START_TOKENS = 900
STREAMS = 4
SHIPPED, LOCAL = "shipped", "few_tokens_missing"
_LIMITS = {SHIPPED: 0, LOCAL: 4096}
WAIT_S = 120.0
# What one prompt leaves behind should not delay the next one.
_REST_S = 0.05


@dataclass(frozen=True)
class Row:
    """The times to the second token, in seconds: the medians of all rounds."""

    missing: int
    shipped_s: float
    local_s: float
    shipped_cpu_s: float
    """What the decode worker has used of the processor."""
    local_cpu_s: float
    shipped_pause_s: float
    """The longest pause of a running stream meanwhile."""
    local_pause_s: float

    def cells(self) -> str:
        """Return the row of the table."""
        times = (
            *(self.shipped_s, self.local_s, self.shipped_cpu_s, self.local_cpu_s),
            *(self.shipped_pause_s, self.local_pause_s),
        )
        return f"| {self.missing} | " + " | ".join(f"{1e3 * t:.1f}" for t in times) + " |"


class _Streams:
    """Streams that run on the decode worker, one after the other in each of some threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._times: list[list[float]] = [[] for _ in range(STREAMS)]
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(STREAMS)]

    def __enter__(self) -> _Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, i: int) -> None:
        body = {"model": "m", "prompt": [1 + i, 2, 3], "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.Client(trust_env=False, timeout=WAIT_S) as http:
            while not self._over.is_set():
                with http.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            self._times[i].append(time.monotonic())
                        if self._over.is_set():
                            break
                self._times[i].append(float("nan"))  # What is between two streams is no pause of one.

    def longest_pause_s(self, from_s: float, to_s: float) -> float:
        """Return the longest time between two tokens of a stream that overlaps the interval."""
        pairs = (pair for times in self._times for pair in itertools.pairwise(list(times)))
        return max((b - a for a, b in pairs if b > from_s and a < to_s), default=float("nan"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def routers(**more: object) -> Iterator[tuple[dict[str, str], int]]:
    """Yield the URLs of two routers before one pair of workers, by the reason that they should give
    for the path of a prompt, and the process of the decode worker. The workers have `more`
    settings.
    """
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        folder = Path(home)
        (folder / "key").write_text(secrets.token_hex(32))
        common = {"model_name": "m", "cluster_key_file": folder / "key"}
        listed = []
        for role in ("prefill", "decode"):
            port = _free_port()
            model = {"model_uri": f"file://{ROOT / 'models' / 'stdlib-llama'}", "kv_cache_bytes": 256 << 20} | more
            settings = common | model | {"role": role, "port": port, "kv_port": 0, "pod_name": role}
            worker = stack.enter_context(process("disagg_worker", folder / f"{role}.log", **settings))
            listed.append({"name": role, "url": f"http://127.0.0.1:{port}"})
        (folder / "members.json").write_text(json.dumps({"workers": listed}))
        urls = {}
        for reason, limit in _LIMITS.items():
            port = _free_port()
            values = {"port": port, "membership": f"file://{folder}/members.json", "local_prefill_max_tokens": limit}
            stack.enter_context(process("disagg_router", folder / f"{reason}.log", **common | values))
            urls[reason] = f"http://127.0.0.1:{port}"
        for url in urls.values():
            _await_pairs(url)
        yield urls, worker.pid


def _await_pairs(url: str) -> None:
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s:
        try:
            page = httpx.get(f"{url}/metrics", trust_env=False).text
            if 'disagg_router_pairs{state="healthy"} 1.0' in page:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{url} has no pair")


def ask(http: httpx.Client, url: str, prompt: list[int], reason: str) -> float:
    """Return the time to the second token, in seconds: the first of a prompt that is shipped does
    not wait for the transfer.
    """
    body = {"model": "m", "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    began_s = time.monotonic()
    answer = http.post(f"{url}/v1/completions", json=body, headers={"x-disagg-trace": "1"}).raise_for_status().json()
    took_s = time.monotonic() - began_s
    if answer["disagg"]["reason"] != reason:
        raise RuntimeError(f"the prompt was prefilled elsewhere: {answer['disagg']}")
    return took_s


def _cpu_s(pid: int) -> float:
    """Return what a process has used of the processor, with threads that have ended."""
    return time.clock_gettime((~pid << 3) | 2)  # What clock_getcpuclockid() returns.


def measure(rounds: int) -> list[Row]:
    """Return the rows; each prompt is new, and both ways take turns, alone and beside streams."""
    cases = [(n, reason) for n in MISSING for reason in _LIMITS]
    alone, cpu, pauses = ({case: list[float]() for case in cases} for _ in range(3))
    rng = random.Random(7)
    with routers() as (urls, decode), httpx.Client(trust_env=False, timeout=WAIT_S) as http:

        def new(n: int) -> list[int]:
            """Return a prompt of which decode lacks n tokens."""
            prompt = [rng.randrange(1, 2000) for _ in range(START_TOKENS + n)]
            ask(http, urls[SHIPPED], prompt[:START_TOKENS], SHIPPED)
            time.sleep(_REST_S)
            return prompt

        for n, reason in cases * rounds:
            prompt, before_s = new(n), _cpu_s(decode)
            alone[n, reason].append(ask(http, urls[reason], prompt, reason))
            cpu[n, reason].append(_cpu_s(decode) - before_s)
        with _Streams(urls[SHIPPED]) as streams:
            for case in cases * rounds:
                prompt, began_s = new(case[0]), time.monotonic()
                took_s = ask(http, urls[case[1]], prompt, case[1])
                time.sleep(_REST_S)  # The pause that this is about may still last.
                pauses[case].append(streams.longest_pause_s(began_s, began_s + took_s))
    kinds = [(found, way) for found in (alone, cpu, pauses) for way in (SHIPPED, LOCAL)]
    return [Row(n, *(statistics.median(found[n, way]) for found, way in kinds)) for n in MISSING]


HEAD = """| missing tokens | shipped, ms | prefilled by decode, ms | CPU of decode, ms: shipped | prefilled there |\
 longest pause of a stream, ms: shipped | prefilled by decode |
|---|---|---|---|---|---|---|
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    print(HEAD + "\n".join(row.cells() for row in measure(parser.parse_args().rounds)))
