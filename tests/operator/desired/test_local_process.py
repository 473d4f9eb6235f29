"""Tests of the processes of `disagg local`: the environment of pods, plus addresses and files."""

from __future__ import annotations

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.desired.environment import router_environment, worker_environment
from disagg_operator.desired.local_process import router_process, worker_process


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_has_the_environment_of_the_pods_but_for_its_place(role: str) -> None:
    dd = parse(good(decode={"kvCacheSize": "1Gi"}))
    process = worker_process(dd, role, 3, 18000, "/tmp/key")
    assert (process.name, process.module) == (f"chat-{role}-3", "disagg_worker")
    place = {
        "DISAGG_HOST": "127.0.0.1", "DISAGG_PORT": "18000", "DISAGG_KV_PORT": "0", "DISAGG_POD_NAME": f"chat-{role}-3",
        "DISAGG_CLUSTER_KEY_FILE": "/tmp/key",
    }  # fmt: skip
    assert process.environment == worker_environment(dd, role) | place


def test_the_router_has_the_environment_of_the_pods_and_finds_workers_in_a_file() -> None:
    dd = parse(good())
    process = router_process(dd, 18080, "/tmp/key", "/tmp/members.json")
    assert (process.name, process.module) == ("chat-router", "disagg_router")
    place = {
        "DISAGG_HOST": "127.0.0.1", "DISAGG_PORT": "18080", "DISAGG_CLUSTER_KEY_FILE": "/tmp/key",
        "DISAGG_MEMBERSHIP": "file:///tmp/members.json",
    }  # fmt: skip
    assert process.environment == router_environment(dd) | place
