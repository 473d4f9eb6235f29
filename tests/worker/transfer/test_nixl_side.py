"""Tests of what a worker does with NIXL at its start: it goes without, if it cannot be used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from disagg_worker.transfer import nixl_agent, nixl_side
from disagg_worker.values.kv_blocks import Region

CACHE: Any = SimpleNamespace(region=Region(0, 1, 1))


@pytest.mark.parametrize("role", ["prefill", "decode", "both"])
def test_memory_that_may_not_be_registered_ends_the_use_of_nixl_and_not_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, role: Any
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("NIXL_ERR_BACKEND")

    monkeypatch.setattr(nixl_agent, "is_installed", lambda: True)
    monkeypatch.setattr(nixl_side, "NixlAgent", refused)
    assert nixl_side.nixl_side(CACHE, "rdma", False, "lo", ["mlx5_0:1"], role) is None
    assert "NIXL cannot be used, so that KV goes over TCP" in caplog.text
    assert "NIXL_ERR_BACKEND" in caplog.text


def test_without_the_library_a_transport_that_needs_it_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nixl_agent, "is_installed", lambda: False)
    for wanted, warned in (("auto", False), ("tcp", False), ("rdma", True)):
        caplog.clear()
        assert nixl_side.nixl_side(CACHE, wanted, False, "lo", ["mlx5_0:1"], "both") is None
        assert ("NIXL is not installed" in caplog.text) is warned


@pytest.mark.parametrize(
    ("wanted", "over_tcp", "devices", "installed", "found"),
    [
        ("auto", False, [], True, False),
        ("auto", False, ["mlx5_0:1"], True, True),
        ("auto", True, [], True, True),
        ("rdma", False, [], True, True),
        ("shm", False, [], True, True),
        ("nvlink", False, ["mlx5_0:1"], True, False),  # It does not reach host memory.
        ("tcp", False, ["mlx5_0:1"], True, False),
        ("rdma", True, ["mlx5_0:1"], False, False),
    ],
)
def test_only_what_writes_into_host_memory_takes_a_copy_of_a_divided_cache(
    monkeypatch: pytest.MonkeyPatch, wanted: str, over_tcp: bool, devices: list[str], installed: bool, found: bool
) -> None:
    monkeypatch.setattr(nixl_agent, "is_installed", lambda: installed)
    assert nixl_side.needs_host_region(wanted, over_tcp, devices) is found


def test_a_divided_cache_without_a_copy_is_not_written_by_others(caplog: pytest.LogCaptureFixture) -> None:
    cache: Any = SimpleNamespace(region=None)
    for wanted, warned in (("auto", False), ("tcp", False), ("nvlink", True)):
        caplog.clear()
        assert nixl_side.nixl_side(cache, wanted, False, "lo", [], "both") is None
        assert ("have no memory in common" in caplog.text) is warned
