"""Tests of the choice of a transport from what two workers reach."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from disagg_worker.transfer.reach import Facts, common, reach_of

HOST = Facts(library=True, on_gpu=False, devices=(), neighbourhood="here")
GPU = Facts(library=True, on_gpu=True, devices=("mlx5_0",), neighbourhood="here")


@pytest.mark.parametrize(
    ("facts", "wanted", "over_tcp", "found"),
    [
        (HOST, "auto", False, {"shm": "here"}),
        (HOST, "rdma", False, {"shm": "here"}),
        (HOST, "tcp", False, {}),
        (HOST, "tcp", True, {"tcp": "network"}),
        (HOST, "auto", True, {"shm": "here", "tcp": "network"}),
        (replace(HOST, library=False), "auto", True, {}),
        (replace(HOST, devices=("mlx5_0",)), "auto", False, {"rdma": "network", "shm": "here"}),
        (GPU, "auto", False, {"rdma": "network", "nvlink": "here"}),
        (replace(HOST, ucx_tls="tcp"), "auto", False, {}),
        (replace(HOST, ucx_tls="tcp,cma"), "auto", False, {"shm": "here"}),
        (replace(HOST, ucx_tls="^tcp"), "auto", False, {"shm": "here"}),
        (replace(HOST, ucx_tls="^shm,tcp"), "auto", False, {}),
    ],
)
def test_a_worker_reaches_what_it_has(facts: Facts, wanted: str, over_tcp: bool, found: dict[str, str]) -> None:
    assert reach_of(facts, wanted, over_tcp) == found


ALL = {"rdma": "network", "nvlink": "here", "shm": "here", "tcp": "network"}


@pytest.mark.parametrize(
    ("wanted", "mine", "others", "found"),
    [
        ("auto", ALL, ALL, "nvlink"),
        ("rdma", ALL, ALL, "rdma"),
        ("shm", ALL, ALL, "shm"),
        ("auto", ALL, ALL | {"nvlink": "there", "shm": "there"}, "rdma"),
        ("nvlink", ALL, ALL | {"nvlink": "there"}, "shm"),
        ("auto", ALL, {"tcp": "network", "pigeon": "sky"}, "tcp"),
        ("auto", {"shm": "here"}, {"rdma": "network"}, None),
        ("rdma", {}, ALL, None),
    ],
)
def test_a_pair_uses_the_wanted_transport_or_the_best_that_both_have(
    wanted: str, mine: dict[str, str], others: dict[str, str], found: str | None
) -> None:
    assert common(wanted, mine, others) == found


_WANTED = ("auto", "rdma", "nvlink", "shm", "tcp")
_SETS = [frozenset(c) for n in range(5) for c in combinations(ALL, n)]


@pytest.mark.parametrize("wanted", _WANTED)
def test_each_value_with_all_that_both_ends_may_have(wanted: str) -> None:
    """The wanted one if both have it, else the fastest of both; both ends find the same."""
    for mine in _SETS:
        for theirs in _SETS:
            both = mine & theirs
            ranked = [name for name in ("nvlink", "shm", "rdma", "tcp") if name in both]
            expected = wanted if wanted in both else next(iter(ranked), None)
            ours, others = ({name: ALL[name] for name in have} for have in (mine, theirs))
            assert common(wanted, ours, others) == common(wanted, others, ours) == expected, (mine, theirs)
