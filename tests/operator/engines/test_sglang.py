"""Tests of the command and the environment of SGLang."""

from __future__ import annotations

import pytest
from tests.operator.engines.pools import pool, value_of

from disagg_operator.engines.contract import EngineProcess
from disagg_operator.engines.launch import KEY_PLACE
from disagg_operator.engines.sglang import ENGINE


def process(**facts: object) -> EngineProcess:
    assert ENGINE.process is not None
    return ENGINE.process(pool(**facts))


def test_prefill_listens_on_the_pods_address_behind_a_key() -> None:
    found = process()
    assert found.guarded
    assert value_of(found.command, "--host") == "$(DISAGG_HOST)"
    assert value_of(found.command, "--api-key") == KEY_PLACE
    assert value_of(found.command, "--disaggregation-bootstrap-port") == "8998"
    assert found.ports == {"bootstrap": 8998}


def test_decode_listens_on_the_loopback_interface() -> None:
    found = process(role="decode")
    assert not found.guarded
    assert value_of(found.command, "--host") == "127.0.0.1"
    assert "--api-key" not in found.command
    assert found.ports == {}
    assert value_of(found.command, "--disaggregation-mode") == found.role == "decode"


@pytest.mark.parametrize(
    ("facts", "flag", "value"),
    [
        ({"revision": "v1"}, "--revision", "v1"),
        ({"quantization": "fp8"}, "--quantization", "fp8"),
        ({"max_model_len": 4096}, "--context-length", "4096"),
        ({"loras": (("law", "/law"),)}, "--lora-paths", "law=/law"),
    ],
)
def test_an_optional_field_is_a_flag_only_where_it_is_set(facts: dict[str, object], flag: str, value: str) -> None:
    assert value_of(process(**facts).command, flag) == value
    assert flag not in process().command


def test_the_prefix_cache_is_on_or_off_by_the_spec() -> None:
    assert "--disable-radix-cache" not in process().command
    assert "--disable-radix-cache" in process(prefix_cache=False).command


def test_waiting_ends_with_the_lease() -> None:
    environment = process(lease_s=90).environment
    assert environment["SGLANG_DISAGGREGATION_WAITING_TIMEOUT"] == "90"
    assert environment["SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT"] == "90"


def test_the_ports_that_the_kernel_chooses_are_those_that_peers_reach() -> None:
    found = process()
    ((name, value),) = found.sysctls
    assert name == "net.ipv4.ip_local_port_range"
    assert tuple(int(port) for port in value.split()) in found.peer_ports


def test_users_can_not_set_what_the_operator_sets() -> None:
    rendered = {*process(transport="tcp").environment, *process().address_variables}
    assert rendered - set(ENGINE.reserved) == {"UCX_NET_DEVICES", "UCX_TLS"}
    assert "SGLANG_GRPC_PORT" in ENGINE.reserved  # would open a second server
