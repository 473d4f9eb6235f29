"""Tests of what a worker tells of the transport of its KV."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from disagg_worker.server.kv_usage import KvUsage
from disagg_worker.server.metrics import Metrics
from disagg_worker.transfer.ucx_report import Moved


def _usage(*reach: str) -> KvUsage:
    nixl: Any = SimpleNamespace(reach=dict.fromkeys(reach, "here"), best=reach[0], devices=["mlx5_0:1"])
    return KvUsage(nixl, "net1", Metrics(lambda: None, 16))


@pytest.mark.parametrize(
    ("said", "reach", "told"),
    [
        (Moved("rdma", "Proved", "mlx5_7:1"), ("rdma",), Moved("rdma", "Proved", "mlx5_0:1")),
        (Moved("rdma", "Proved", "mlx5_7:1"), ("shm",), Moved("rdma", "Configured", "mlx5_0:1")),
        (Moved("nvlink", "Proved", ""), ("rdma", "shm"), Moved("nvlink", "Configured", "")),
        # UCX may take its TCP on the loopback interface for shared memory.
        (Moved("tcp", "Proved", "lo"), ("shm",), Moved("tcp", "Proved", "net1")),
        (Moved("shm", "Configured", ""), ("shm",), Moved("shm", "Configured", "")),
        (None, ("rdma",), Moved("tcp", "Proved", "net1")),
    ],
)
def test_what_a_peer_says_is_proved_only_if_this_worker_has_it(
    said: Moved | None, reach: tuple[str, ...], told: Moved
) -> None:
    usage = _usage(*reach)
    assert usage.received(said, "10.0.0.7") == told
    assert usage.last == told
