"""The `info` of a worker, and workers as the router reads them from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from disagg_router.workers.worker_info import Member, Worker, parse_info

INFO: dict[str, Any] = {
    "protocol": 1,
    "incarnation": "uid/1",
    "pod": "chat-decode-abc",
    "role": "decode",
    "state": "ready",
    "revision": "5d8f",
    "model": {
        "name": "m",
        "digest": "D",
        "vocab_size": 2048,
        "max_model_len": 2048,
        "eos_token_ids": [0],
        "bos_token_id": None,
    },
    "kv": {
        "compat": "c",
        "host": "10.0.0.7",
        "port": 9000,
        "interface": "net1",
        "transport": "tcp",
        "block_size_tokens": 16,
        "bytes_per_token": 6144,
        "blocks_total": 100,
        "blocks_free": 100,
    },
    "limits": {"max_running": 10, "max_waiting": 256},
    "load": {"waiting_requests": 0, "waiting_tokens": 0, "running_requests": 0},
}


def worker(name: str, role: str, **changes: Any) -> Worker:
    parsed = parse_info(Member(name, f"http://{name}"), INFO | {"incarnation": f"{name}/1", "role": role})
    assert parsed is not None
    return replace(parsed, **changes)
