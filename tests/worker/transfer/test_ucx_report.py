"""Tests of what is read from the report of UCX, of which the tables were recorded."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_worker.transfer.ucx_report import Moved, Report, moved_of

# UCX 1.20 in NIXL 1.5.1, between two processes of a machine.
RECORDED = """
[1796101492.708831] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101492.708831] [vm:9025 :0]   | a1 self cfg#0                                            |
[1796101492.708831] [vm:9025 :0]   | remote memory write by ucp_put* from host memory to host |
[1796101492.708831] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101492.708831] [vm:9025 :0]   | Range  | Description |              Config               |
[1796101492.708831] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101492.708831] [vm:9025 :0]   | 0..inf | zero-copy   | cma/memory                        |
[1796101492.708831] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101492.920000] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101492.920000] [vm:9025 :0]   | a1 intra-node cfg#1                                      |
[1796101492.920000] [vm:9025 :0]   | remote memory write by ucp_put* from host memory to host |
[1796101492.920000] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101492.920000] [vm:9025 :0]   | Range  | Description |              Config               |
[1796101492.920000] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101492.920000] [vm:9025 :0]   | 0..inf | zero-copy   | 52% on tcp/lo and 48% on tcp/eth0 |
[1796101492.920000] [vm:9025 :0]   +--------+-------------+-----------------------------------+
[1796101493.037720] [vm:9025 :0]   +------------+--------------------+---------------+
[1796101493.037720] [vm:9025 :0]   | a1 intra-node cfg#1                             |
[1796101493.037720] [vm:9025 :0]   | active message by ucp_am_send* from host memory |
[1796101493.037720] [vm:9025 :0]   +------------+--------------------+---------------+
[1796101493.037720] [vm:9025 :0]   |   Range    |    Description     |    Config     |
[1796101493.037720] [vm:9025 :0]   +------------+--------------------+---------------+
[1796101493.037720] [vm:9025 :0]   |          0 | short              | sysv/memory   |
[1796101493.037720] [vm:9025 :0]   +------------+--------------------+---------------+
[1796101493.500000] [vm:9025:0] tcp_ep.c:100 UCX  WARN  something is odd
"""
TABLE = """x | {name}
x | remote memory write by ucp_put*(multi) from host memory to host |
x | Range | Description | Config |
{rows}"""


def table(name: str, *rows: str) -> str:
    return TABLE.format(name=name, rows="\n".join(f"x | {row} |" for row in rows))


def test_the_table_of_writes_to_others_counts_and_no_other_one() -> None:
    report = Report()
    lines = report.read(RECORDED)
    assert [line.partition("UCX")[2] for line in lines] == ["  WARN  something is odd"]
    assert report.endpoints == {"a1 intra-node cfg#1"}
    assert report.moved(1 << 20, report.endpoints) == Moved("tcp", "Proved", "eth0,lo")
    assert report.moved(1 << 20, ["unknown"]) is None
    assert report.moved(1 << 20, []) is None


@pytest.mark.parametrize(
    ("config", "transport", "interface"),
    [
        ("cma/memory", "shm", ""),
        ("cuda_ipc/cuda", "nvlink", ""),
        ("rc_mlx5/mlx5_0:1", "rdma", "mlx5_0:1"),
        ("50% on rc_mlx5/mlx5_1:1 and 50% on rc_mlx5/mlx5_0:1", "rdma", "mlx5_0:1,mlx5_1:1"),
        ("90% on rc_mlx5/mlx5_0:1 and 10% on tcp/eth0", "tcp", "eth0"),
        ("dc_mlx5/mlx5_0:1", "rdma", "mlx5_0:1"),
        ("ud_verbs/mlx5_0:1", "rdma", "mlx5_0:1"),
    ],
)
def test_lanes_have_the_names_of_the_transports(config: str, transport: str, interface: str) -> None:
    report = Report()
    report.read(table("b inter-node cfg#2 |", f"0..inf | zero-copy | {config}"))
    assert report.moved(4096, report.endpoints) == Moved(transport, "Proved", interface)


def test_the_range_of_the_size_counts() -> None:
    report = Report()
    rows = ["0..2038 | short | tcp/eth0", "2039..8K | copy-in | rc_mlx5/mlx5_0:1", "8193..inf | rndv | cma/memory"]
    report.read(table("b inter-node cfg#2 |", *rows, "nonsense | x | tcp/lo"))
    found = [report.moved(size, report.endpoints) for size in (1, 8192, 8193)]
    assert [moved and moved.transport for moved in found] == ["tcp", "rdma", "shm"]
    report.read(table("c inter-node cfg#3 |", "5 | short | tcp/eth0", "6..7 | short | magic/wand"))
    assert report.moved(5, ["c inter-node cfg#3"]) == Moved("tcp", "Proved", "eth0")
    assert [report.moved(size, ["c inter-node cfg#3"]) for size in (4, 6)] == [None, None]


def test_endpoints_that_differ_prove_nothing_and_the_slowest_counts() -> None:
    report = Report()
    report.read(table("b inter-node cfg#2 |", "0..inf | x | tcp/eth0"))
    report.read(table("b intra-node cfg#3 |", "0..inf | x | cma/memory"))
    assert report.moved(1, report.endpoints) == Moved("tcp", "Configured", "eth0")
    assert report.moved(1, ["b intra-node cfg#3"]) == Moved("shm", "Proved", "")


@pytest.mark.parametrize(
    ("said", "moved"),
    [
        (["rdma", "Proved", "mlx5_0:1"], Moved("rdma", "Proved", "mlx5_0:1")),
        (["pigeon", "Proved", ""], None),
        (["rdma", "sure", ""], None),
        (["rdma", "Proved", 3], None),
        (["rdma", "Proved"], None),
        ([{}, [], ""], None),
        (None, None),
        ("rdma", None),
    ],
)
def test_what_a_peer_says_counts_in_these_words_alone(said: Any, moved: Moved | None) -> None:
    assert moved_of(said) == moved
