"""Tests of how the adapter passes on what the engine's container finds of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.rig import make_adapter, running, until
from tests.fakes.adapter_engine import FakeEngine

from disagg_adapter.server import device_counters
from disagg_adapter.server.device_counters import Received
from disagg_adapter.server.fabric_file import FabricFile
from disagg_wire.engine_metrics.readings import Readings

PORT = {"name": "mlx5_0:1", "error": "", "state": "ACTIVE", "interface": "net1"}
REPORT: dict[str, Any] = {
    "ports": [PORT], "usable": ["mlx5_0:1"], "asked": 1, "bytes": 1 << 30, "memlock_bytes": -1, "capabilities": "0",
    "error": "",
}  # fmt: skip


def test_the_report_is_read_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    file = FabricFile(path)
    assert (file.told(), file.ports()) == (None, None)
    path.write_text(json.dumps(REPORT))
    assert file.told() == REPORT
    path.unlink()
    assert file.ports() == frozenset({"mlx5_0:1"})
    assert FabricFile(None).told() is None


def test_too_large_a_file_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT | {"x": "y" * (1 << 18)}))
    assert FabricFile(path).told() is None


async def test_before_the_engine_serves_its_limit_is_the_workers_problem(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT | {"memlock_bytes": 8 << 20, "error": None}))
    for transport, reason in (("rdma", "MemlockTooLow"), ("auto", None)):
        adapter = make_adapter("decode", tmp_path, FakeEngine(), fabric_report=path, transport=transport)
        info = adapter.info()
        assert info["fabric"]["problem"]["reason"] == "MemlockTooLow"
        assert (info.get("problem") or {}).get("reason") == reason


async def test_the_counters_of_other_pods_devices_prove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the devices of a node are shared, sysfs shows those of all pods."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))
    now = {"mlx5_0:1": 0, "mlx5_1:1": 0}
    monkeypatch.setattr(device_counters, "received", lambda: Received({}, dict(now)))
    engine = FakeEngine(readings=Readings(transfer_bytes_total=0.0))
    async with running("decode", tmp_path, engine, kv_interface="net1", fabric_report=path, transport="rdma") as one:
        assert one.adapter.info()["fabric"] == REPORT
        now["mlx5_1:1"] += 1 << 20
        engine.readings = Readings(transfer_bytes_total=float(1 << 20))
        await until(lambda: one.adapter.transport().transport != "rdma")
        now["mlx5_0:1"] += 1 << 21
        engine.readings = Readings(transfer_bytes_total=float(1 << 21))
        await until(lambda: one.adapter.transport().evidence == "Proved")
        assert (one.adapter.transport().transport, one.adapter.transport().interface) == ("rdma", "mlx5_0:1")
