"""The real processes on loopback.

There is a prefill worker and a decode worker with one router, and a worker of role `both` with
another.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from benchmarks.processes import ROOT, process
from tests.ports import free_port

MODEL = "stdlib"
API_KEY = "sk-test"
BODY_LIMIT_BYTES = 64 << 10
_START_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Real:
    """The base URLs of two routers.

    `split` has prefill and decode on two workers, `whole` has one worker of role both.
    """

    split: str
    whole: str
    folder: Path
    pids: dict[str, int]
    """The processes by name: the roles of the workers, and the routers `split` and `whole`."""


def _wait(url: str, log: Path, child: subprocess.Popen[bytes]) -> None:
    """Wait until the URL answers 200. Raises RuntimeError with the end of the log."""
    until_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            if httpx.get(url, trust_env=False, headers={"authorization": f"Bearer {API_KEY}"}).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if child.poll() is not None or time.monotonic() > until_s:
            raise RuntimeError(f"{url} is not ready:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)


def _serves(base: str, key: dict[str, str]) -> None:
    """Wait until a whole pair serves requests.

    The first requests may come before the workers are polled for the first time.
    """
    until_s = time.monotonic() + _START_TIMEOUT_S
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    while httpx.post(
        f"{base}/v1/completions", json=body, headers=key, trust_env=False
    ).status_code != 200 or not _pairs_ready(base):
        if time.monotonic() > until_s:
            raise RuntimeError(f"{base} serves nothing")
        time.sleep(0.1)


def _pairs_ready(base: str) -> bool:
    text = httpx.get(f"{base}/metrics", trust_env=False).text
    count = {
        line.split('"')[1]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("disagg_router_pairs{")
    }
    return count["healthy"] == count["expected"]


@contextmanager
def real(folder: Path) -> Iterator[Real]:
    (folder / "key").write_text(secrets.token_hex(32))
    (folder / "api-keys").write_text(API_KEY + "\nsk-other\n")
    common = {"model_name": MODEL, "cluster_key_file": folder / "key"}
    with ExitStack() as stack:
        waits = []
        pids: dict[str, int] = {}
        members: dict[str, list[dict[str, str]]] = {"split": [], "whole": []}
        for role in ("prefill", "decode", "both"):
            port, log = free_port(), folder / f"{role}.log"
            model = {"model_uri": f"file://{ROOT / 'models' / 'stdlib-llama'}", "kv_cache_bytes": 64 << 20}
            settings = common | model | {"role": role, "port": port, "kv_port": 0, "pod_name": role}
            waits.append(
                (f"http://127.0.0.1:{port}/readyz", log, stack.enter_context(process("disagg_worker", log, **settings)))
            )
            members["whole" if role == "both" else "split"].append({"name": role, "url": f"http://127.0.0.1:{port}"})
        urls = {}
        for name, listed in members.items():
            (folder / f"{name}.json").write_text(json.dumps({"workers": listed}))
            port, log = free_port(), folder / f"router-{name}.log"
            settings = common | {
                "port": port,
                "membership": f"file://{folder / name}.json",
                "max_body_bytes": BODY_LIMIT_BYTES,
                "api_keys_file": folder / "api-keys",
                "poll_interval_s": 0.2,
                "objective_ttft_s": 1,
                # The second time, a prompt would be prefilled by decode.
                "local_prefill_max_tokens": 0,
            }
            urls[name] = f"http://127.0.0.1:{port}"
            waits.append((f"{urls[name]}/readyz", log, stack.enter_context(process("disagg_router", log, **settings))))
        for name, (url, log, child) in zip(("prefill", "decode", "both", *urls), waits, strict=True):
            _wait(url, log, child)
            pids[name] = child.pid
        for url in urls.values():
            _serves(url, {"authorization": f"Bearer {API_KEY}"})
        yield Real(urls["split"], urls["whole"], folder, pids)
