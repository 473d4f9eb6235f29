"""Tests of how the workers move KV, as the routers report it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.status.kv_links import (
    PairLink,
    RouterView,
    WorkerLink,
    fallback_of,
    mismatch_of,
    pairs_status,
    router_view,
    words_of,
    workers_by_transport,
)
from disagg_wire.problems import WorkerProblem

WORKER = {"pod": "p", "role": "prefill", "state": "ready", "transport": "tcp", "interface": "net1"}
PREFILL = WorkerLink("p", "prefill", "tcp", "net1", compat="a", engine="vllm 0.33.0")
DECODE = WorkerLink("d", "decode", "tcp", "net1", compat="a", engine="vllm 0.33.0")


def links(*transports: str) -> RouterView:
    return RouterView(1, 1, tuple(WorkerLink(str(i), "decode", t, "net1") for i, t in enumerate(transports)))


def test_the_worst_router_is_believed_and_only_ready_workers_count() -> None:
    good = {"pairs": {"expected": 2, "healthy": 2}, "workers": [WORKER]}
    bad = {"pairs": {"expected": 2, "healthy": 1}, "workers": [WORKER, {**WORKER, "state": "draining"}, 7]}
    assert router_view([good, bad]) == RouterView(2, 1, (WorkerLink("p", "prefill", "tcp", "net1"),))
    assert router_view([{"pairs": "many"}, {}, {"pairs": {"expected": 1}}]) is None


@pytest.mark.parametrize(
    ("changes", "link"),
    [
        ({}, WorkerLink("p", "prefill", "tcp", "net1")),
        ({"evidence": "Proved"}, WorkerLink("p", "prefill", "tcp", "net1", "Proved")),
        ({"evidence": "Surely"}, WorkerLink("p", "prefill", "tcp", "net1")),
        ({"transport": "pigeon", "interface": None}, WorkerLink("p", "prefill", "unknown", "")),
        ({"transport": None, "compat": "a"}, WorkerLink("p", "prefill", "unknown", "net1", compat="a")),
        (
            {"engine": "vllm 0.33.0"},
            WorkerLink("p", "prefill", "tcp", "net1", engine="vllm 0.33.0"),
        ),
        ({"fabric": {"usable": ["mlx5_0:1"]}}, WorkerLink("p", "prefill", "tcp", "net1", devices=1)),
        # Whoever says the same device again and again has one.
        ({"fabric": {"usable": ["mlx5_0:1", "mlx5_0:2"] * 99}}, WorkerLink("p", "prefill", "tcp", "net1", devices=1)),
        (
            {"fabric": {"usable": [], "problem": {"reason": "MemlockTooLow", "message": "8 MiB"}}},
            WorkerLink("p", "prefill", "tcp", "net1", problem=WorkerProblem("MemlockTooLow", "8 MiB")),
        ),
        ({"fabric": {"usable": [], "problem": {"reason": "Evil"}}}, WorkerLink("p", "prefill", "tcp", "net1")),
        ({"fabric": 7}, WorkerLink("p", "prefill", "tcp", "net1")),
    ],
)
def test_a_worker_is_read_from_what_the_router_says(changes: dict[str, Any], link: WorkerLink) -> None:
    view = router_view([{"pairs": {"expected": 1, "healthy": 1}, "workers": [WORKER | changes]}])
    assert view is not None
    assert view.workers == (link,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
)
FIELDS = st.dictionaries(st.sampled_from(["state", "transport", "interface", "evidence", "engine"]), JSON)


@given(st.dictionaries(st.sampled_from(["pairs", "workers", "waiting"]), JSON))
def test_no_answer_of_a_router_can_break_the_operator(state: dict[str, Any]) -> None:
    router_view([state])


@given(st.lists(FIELDS | JSON) | JSON)
def test_no_worker_in_it_can_either(workers: Any) -> None:
    assert router_view([{"pairs": {"expected": 1, "healthy": 1}, "workers": workers}]) is not None


def test_workers_are_counted_by_their_transport() -> None:
    assert workers_by_transport(links("tcp", "rdma", "tcp", "unknown")) == {"rdma": 1, "nvlink": 0, "shm": 0, "tcp": 2}


def test_status_and_words_have_the_fastest_first() -> None:
    view = links("unknown", "tcp", "shm", "rdma")
    assert view.transports == "rdma,shm,tcp,unknown"
    assert pairs_status(links("tcp")) == {
        "expected": 1,
        "healthy": 1,
        "transport": {"rdma": 0, "nvlink": 0, "shm": 0, "tcp": 1},
        "uses": "tcp",
        "evidence": "Configured",
        "interface": "net1",
    }
    assert words_of(links("tcp")) == "over tcp (Configured) on net1"
    assert words_of(RouterView(1, 1, (WorkerLink("a", "decode", "shm", "", "Proved"),))) == "over shm (Proved)"


def test_what_one_worker_cannot_prove_is_not_proved() -> None:
    proved = replace(PREFILL, evidence="Proved")
    assert RouterView(1, 1, (proved, replace(DECODE, evidence="Proved"))).evidence == "Proved"
    assert RouterView(1, 1, (proved, DECODE)).evidence == "Configured"
    assert RouterView(0, 0).evidence == "Configured"


@pytest.mark.parametrize(
    ("view", "transport", "interface", "words"),
    [
        (links("tcp"), "auto", None, None),
        (links("tcp"), "auto", "net1", None),
        (links("tcp", "tcp"), "auto", "net2", "KV should use net2, but 0 (and 1 more) uses net1"),
        (links("shm", "nvlink"), "rdma", "net2", None),
        (links("rdma"), "rdma", "net1", None),
        (links("rdma", "tcp"), "rdma", None, "transport rdma is asked for, but 1 uses tcp"),
        (links("shm"), "nvlink", None, "transport nvlink is asked for, but 0 uses shm"),
        (links("nvlink"), "shm", None, None),
        (links("tcp"), "shm", None, "transport shm is asked for, but 0 uses tcp"),
        (links("rdma"), "tcp", None, None),
        (RouterView(1, 1, (replace(DECODE, transport="rdma", interface="mlx5_0:1"),)), "rdma", "net1", None),
        (links("unknown"), "rdma", None, "transport rdma is asked for, but 0 uses unknown"),
        (
            RouterView(1, 1, (replace(DECODE, interface=""),)),
            "tcp",
            "net1",
            "KV should use net1, but d uses ?",
        ),
    ],
)
def test_a_fallback_is_a_slower_way_than_the_one_asked_for(
    view: RouterView, transport: str, interface: str | None, words: str | None
) -> None:
    assert fallback_of(view, transport, interface) == words


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ((PREFILL, DECODE), None),
        ((PREFILL,), None),
        ((PREFILL, replace(DECODE, compat="")), None),
        ((replace(PREFILL, role="both"),), None),
        ((PREFILL, replace(DECODE, compat="b"), replace(DECODE, pod="e")), None),
        ((PREFILL, replace(DECODE, compat="b", engine="vllm 0.32.0")), "EngineMismatch"),
        ((PREFILL, replace(DECODE, compat="b", engine="")), "EngineMismatch"),
        ((PREFILL, replace(DECODE, compat="b")), "IncompatibleKV"),
    ],
)
def test_pools_that_do_not_fit_are_told(workers: tuple[WorkerLink, ...], reason: str | None) -> None:
    found = mismatch_of(RouterView(0, 0, workers))
    assert (found[0] if found else None) == reason


def test_what_a_pair_uses_counts_more_than_what_its_workers_say() -> None:
    links = [
        {"prefill": "p", "decode": "d", "transport": "tcp", "evidence": "Proved"},
        {"prefill": "p", "decode": "e", "transport": None, "evidence": None},
        7,
    ]
    worker = WORKER | {"transport": "rdma"}
    view = router_view([{"pairs": {"expected": 2, "healthy": 2}, "workers": [worker], "links": links}])
    assert view is not None
    assert view.pairs == (PairLink("p to d", "tcp", "Proved"),)
    assert words_of(view) == "over tcp (Proved) on net1"
    assert fallback_of(view, "rdma", None) == "transport rdma is asked for, but p to d uses tcp"


def test_a_worker_that_names_an_rdma_device_uses_no_other_interface() -> None:
    worker = WorkerLink("p", "prefill", "rdma", "mlx5_0:1,mlx5_1:1", "Proved")
    assert fallback_of(RouterView(1, 1, (worker,)), "rdma", "net1") is None
    tcp = replace(worker, transport="tcp", interface="eth0")
    assert fallback_of(RouterView(1, 1, (worker, tcp)), "auto", "net1") == "KV should use net1, but p uses eth0"
