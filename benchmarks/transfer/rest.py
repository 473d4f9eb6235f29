"""Measure where the rest of a prompt is prefilled sooner, whose start decode has: there, or by a
prefill worker.
"""

from __future__ import annotations

import json
import random
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.processes import ROOT, process

MISSING = (16, 64, 256, 1024)
START_TOKENS = 900
_SHIPPED, _LOCAL = "shipped", "few_tokens_missing"
_LIMITS = {_SHIPPED: 0, _LOCAL: 4096}
_WAIT_S = 120.0


@dataclass(frozen=True)
class Row:
    """The times to the second token, in seconds: the medians of all rounds."""

    missing: int
    shipped_s: float
    local_s: float


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def _routers() -> Iterator[dict[str, str]]:
    """Yield the URLs of two routers before one pair of workers: the reason that they should give
    for the path of a prompt, and their URL.
    """
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        folder = Path(home)
        (folder / "key").write_text(secrets.token_hex(32))
        common = {"model_name": "m", "cluster_key_file": folder / "key"}
        listed = []
        for role in ("prefill", "decode"):
            port = _free_port()
            model = {"model_uri": f"file://{ROOT / 'models' / 'stdlib-llama'}", "kv_cache_bytes": 256 << 20}
            settings = common | model | {"role": role, "port": port, "kv_port": 0, "pod_name": role}
            stack.enter_context(process("disagg_worker", folder / f"{role}.log", **settings))
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
        yield urls


def _await_pairs(url: str) -> None:
    until_s = time.monotonic() + _WAIT_S
    while time.monotonic() < until_s:
        try:
            page = httpx.get(f"{url}/metrics", trust_env=False).text
            if 'disagg_router_pairs{state="healthy"} 1.0' in page:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{url} has no pair")


def _ask(http: httpx.Client, url: str, prompt: list[int], reason: str) -> float:
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


def measure(rounds: int) -> list[Row]:
    """Return the rows; each prompt is new, and both ways take turns."""
    times: dict[tuple[int, str], list[float]] = {(n, reason): [] for n in MISSING for reason in _LIMITS}
    rng = random.Random(7)
    with _routers() as urls, httpx.Client(trust_env=False, timeout=_WAIT_S) as http:
        for _ in range(rounds):
            for (n, reason), seen in times.items():
                prompt = [rng.randrange(1, 2000) for _ in range(START_TOKENS + n)]
                _ask(http, urls[_SHIPPED], prompt[:START_TOKENS], _SHIPPED)
                seen.append(_ask(http, urls[reason], prompt, reason))
    return [Row(n, *(statistics.median(times[n, reason]) for reason in (_SHIPPED, _LOCAL))) for n in MISSING]
