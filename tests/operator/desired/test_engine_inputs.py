"""Tests of the facts from which engines are rendered."""

from __future__ import annotations

from typing import Any

from tests.operator.api.resources import good, of

from disagg_operator.api import parse
from disagg_operator.desired.engine_inputs import engine_pool, engine_process, peer_ports


def test_a_pool_gets_the_engines_arguments_and_then_its_own() -> None:
    pools: dict[str, Any] = {"prefill": {"args": ["--enforce-eager"]}, "decode": {"args": ["--max-logprobs=5"]}}
    dd = parse(of("vllm", engine={"args": ["--seed=1"]}, **pools))
    assert engine_pool(dd, "prefill").args == ("--seed=1", "--enforce-eager")
    assert engine_pool(dd, "decode").args == ("--seed=1", "--max-logprobs=5")


def test_what_is_left_out_has_a_default() -> None:
    facts = engine_pool(parse(good(engine={"type": "vllm"})), "prefill")
    assert (facts.accelerators, facts.lease_s, facts.interface, facts.kv_cache_bytes) == (0, 60, None, None)


def test_what_is_set_is_passed_on() -> None:
    network = {"attachmentRef": {"name": "n"}, "interface": "rdma0"}
    dd = parse(of("vllm", engine={"leaseSeconds": 90}, decode={"kvCacheSize": "1Mi"}, kvTransfer={"network": network}))
    facts = engine_pool(dd, "decode")
    assert (facts.accelerators, facts.lease_s, facts.interface, facts.kv_cache_bytes) == (1, 90, "rdma0", 1 << 20)


def test_the_bundled_worker_has_no_process_and_no_further_ports() -> None:
    dd = parse(good())
    assert engine_process(dd, "prefill") is None
    assert peer_ports(dd) == ()


def test_the_ports_of_both_pools_are_opened_once() -> None:
    assert peer_ports(parse(of("sglang"))) == ((8998, 8998), (32768, 60999))
    assert peer_ports(parse(of("lmdeploy"))) == ()
