"""Tests of what is said about the transport of a pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.router.workers.infos import worker

from disagg_router.workers.pair_link import Link, declared, reported

P, D = worker("p", "prefill"), worker("d", "decode")


@pytest.mark.parametrize(
    ("prefill", "decode", "wanted"),
    [
        (("tcp", ""), ("tcp", ""), Link("tcp", "Configured")),
        (("rdma", "Proved"), ("rdma", "Proved"), Link("rdma", "Proved")),
        (("rdma", "Proved"), ("rdma", "Configured"), Link("rdma", "Configured")),
        (("rdma", "Proved"), ("tcp", "Proved"), Link("tcp", "Proved")),
        (("shm", "Proved"), ("nvlink", "Proved"), Link("shm", "Proved")),
        (("rdma", "Proved"), ("carrier pigeon", "Proved"), Link("", "Proved")),
    ],
)
def test_two_workers_declare_what_both_have(prefill: tuple[str, str], decode: tuple[str, str], wanted: Link) -> None:
    p = replace(P, transport=prefill[0], evidence=prefill[1])
    d = replace(D, transport=decode[0], evidence=decode[1])
    assert declared(p, d) == wanted


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        ({}, None),
        ({"transport": "ib"}, None),
        ({"transport": []}, None),
        ({"evidence": "Proved"}, None),
        ({"transport": "rdma"}, Link("rdma", "Configured")),
        ({"transport": "rdma", "evidence": "certain"}, Link("rdma", "Configured")),
        ({"transport": "rdma", "evidence": "Proved"}, Link("rdma", "Proved")),
    ],
)
def test_an_event_reports_a_transport_in_the_words_of_the_protocol_or_none(
    event: dict[str, Any], wanted: Link | None
) -> None:
    assert reported(event) == wanted
