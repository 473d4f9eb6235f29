"""Tests of the environment of every stock engine image."""

from __future__ import annotations

import pytest
from tests.operator.engines.pools import pool

from disagg_operator.engines.surroundings import RESERVED, common, ucx


def test_all_that_is_written_goes_to_the_empty_volumes() -> None:
    found = common(pool(threads=3))
    assert (found["HOME"], found["HF_HOME"], found["TMPDIR"], found["OMP_NUM_THREADS"]) == (
        "/cache", "/cache", "/tmp", "3",
    )  # fmt: skip
    assert found["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in common(pool(uses_hub=True))
    assert set(found) <= set(RESERVED)


@pytest.mark.parametrize(
    ("facts", "transports"),
    [
        ({}, None),
        ({"accelerators": 0}, "tcp"),
        ({"transport": "tcp"}, "tcp,cuda_copy"),
        ({"transport": "rdma", "forbids_fallback": True}, "rc,cuda_ipc,cuda_copy"),
        ({"transport": "rdma"}, None),
        # On CPUs, too, KV may go by RDMA.
        ({"accelerators": 0, "transport": "rdma", "forbids_fallback": True}, "^tcp"),
        ({"accelerators": 0, "transport": "rdma"}, None),
        # Other makers' memory is reached by other transports.
        ({"transport": "tcp", "copies": ("rocm_ipc", "rocm_copy")}, "tcp,rocm_copy"),
        (
            {"transport": "rdma", "forbids_fallback": True, "copies": ("rocm_ipc", "rocm_copy")},
            "rc,rocm_ipc,rocm_copy",
        ),
    ],
)
def test_ucx_gets_the_declared_transport(facts: dict[str, object], transports: str | None) -> None:
    assert ucx(pool(**facts)).get("UCX_TLS") == transports


def test_ucx_uses_the_pods_interface_unless_a_network_is_attached() -> None:
    assert ucx(pool())["UCX_NET_DEVICES"] == "eth0"
    assert "UCX_NET_DEVICES" not in ucx(pool(interface="net1"))
