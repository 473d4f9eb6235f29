"""Tests of each value of `kvTransfer.transport` with each transport that a pair may use: what the
conditions say with each `fallback`, and what `kubectl get -o wide` shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.operator.status.test_conditions import INTENT, seen

from disagg_operator.api.crdgen import generate
from disagg_operator.status.conditions import conditions
from disagg_operator.status.kv_links import pairs_status, router_view
from disagg_wire.engines import TRANSPORTS

UNKNOWN = "unknown"
# What is as good as the declared one; with auto and tcp everything is.
AS_GOOD = {
    "auto": {*TRANSPORTS, UNKNOWN},
    "tcp": {*TRANSPORTS, UNKNOWN},
    "rdma": {"rdma", "nvlink", "shm"},
    "nvlink": {"nvlink"},
    "shm": {"nvlink", "shm"},
}
USED = (*TRANSPORTS, UNKNOWN)


def _state(*used: str) -> dict[str, Any]:
    """Return what a router says of pairs that use these transports."""
    pairs = {"expected": len(used), "healthy": len(used)}
    workers = [
        {"pod": f"{role}-{i}", "role": role, "state": "ready", "transport": name, "interface": "", "evidence": "Proved"}
        for i, name in enumerate(used)
        for role in ("prefill", "decode")
    ]
    links = [
        {"prefill": f"prefill-{i}", "decode": f"decode-{i}", "transport": name, "evidence": "Proved"}
        for i, name in enumerate(used)
        if name != UNKNOWN
    ]
    return {"pairs": pairs, "workers": workers, "links": links}


@pytest.mark.parametrize("fallback", ["Forbid", "Warn"])
@pytest.mark.parametrize("used", USED)
@pytest.mark.parametrize("declared", sorted(AS_GOOD))
def test_what_is_used_is_judged_by_what_was_asked_for(declared: str, used: str, fallback: str) -> None:
    view = router_view([_state(used)])
    intent = replace(INTENT, transport=declared, fallback=fallback)
    told = {c.type: (c.status, c.reason) for c in conditions(intent, seen(view))}
    transfer = next(c for c in conditions(intent, seen(view)) if c.type == "KVTransferReady")
    if used in AS_GOOD[declared]:
        assert (told["KVTransferReady"], told["Degraded"][0]) == (("True", "PairsHealthy"), "False")
        assert used in transfer.message
    elif fallback == "Forbid":
        assert told["KVTransferReady"] == told["Ready"] == ("False", "TransportFallback")
        assert f"transport {declared} is asked for" in transfer.message
        assert f"uses {used}" in transfer.message
    else:
        assert (told["KVTransferReady"], told["Ready"]) == (("True", "PairsHealthy"), ("True", "Ready"))
        assert told["Degraded"] == ("True", "TransportFallback")


@pytest.mark.parametrize("slow", TRANSPORTS)
@pytest.mark.parametrize("declared", ["rdma", "nvlink", "shm"])
def test_one_slow_pair_of_several_is_a_fallback(declared: str, slow: str) -> None:
    view = router_view([_state(declared, slow, declared)])
    intent = replace(INTENT, transport=declared, fallback="Forbid")
    found = next(c for c in conditions(intent, seen(view)) if c.type == "KVTransferReady")
    assert (found.status == "True") is (slow in AS_GOOD[declared])
    assert (found.status == "True") or "prefill-1 to decode-1" in found.message


@pytest.mark.parametrize("used", [("rdma",), ("tcp", "rdma"), ("shm", "nvlink", "tcp")])
def test_wide_shows_what_is_used_and_not_what_was_asked_for(used: tuple[str, ...]) -> None:
    view = router_view([_state(*used)])
    assert view is not None
    status = pairs_status(view)
    assert set(status["uses"].split(",")) == set(used)
    assert {name for name, n in status["transport"].items() if n} == set(used)
    (main,) = (crd for crd in generate().values() if crd["spec"]["names"]["kind"] == "DisaggDeployment")
    columns = main["spec"]["versions"][0]["additionalPrinterColumns"]
    (shown,) = (c for c in columns if c["name"] == "Transport")
    assert (shown["jsonPath"], shown["priority"]) == (".status.pairs.uses", 1)
