"""Tests of the command and the environment of vLLM."""

from __future__ import annotations

import json

import pytest
from tests.operator.engines.pools import pool, value_of

from disagg_operator.engines.contract import EnginePool, EngineProcess
from disagg_operator.engines.vllm import ENGINE


def process(**facts: object) -> EngineProcess:
    assert ENGINE.process is not None
    return ENGINE.process(pool(**facts))


def test_the_engine_listens_on_the_loopback_interface_alone() -> None:
    command = process().command
    assert (value_of(command, "--host"), value_of(command, "--port")) == ("127.0.0.1", "8100")
    assert "--enable-scale-out" in command
    assert not process().guarded


@pytest.mark.parametrize(("role", "kind"), [("prefill", "kv_producer"), ("decode", "kv_consumer")])
def test_the_roles_are_those_of_the_connector(role: str, kind: str) -> None:
    config = json.loads(value_of(process(role=role, lease_s=90).command, "--kv-transfer-config"))
    assert config["kv_role"] == kind
    assert config["kv_load_failure_policy"] == "fail"
    assert config["kv_connector_extra_config"]["kv_lease_duration"] == 90
    assert "kv_buffer_device" not in config
    assert process(role=role).role == role


def test_without_a_gpu_the_cache_is_in_the_memory_of_the_host() -> None:
    found = process(accelerators=0)
    assert json.loads(value_of(found.command, "--kv-transfer-config"))["kv_buffer_device"] == "cpu"
    assert found.environment["VLLM_TARGET_DEVICE"] == "cpu"
    assert "VLLM_TARGET_DEVICE" not in process().environment


@pytest.mark.parametrize(
    ("facts", "flag", "value"),
    [
        ({"revision": "v1"}, "--revision", "v1"),
        ({"quantization": "fp8"}, "--quantization", "fp8"),
        ({"max_model_len": 4096}, "--max-model-len", "4096"),
        ({"kv_cache_bytes": 4096, "tensor": 4}, "--kv-cache-memory-bytes", "1024"),
    ],
)
def test_an_optional_field_is_a_flag_only_where_it_is_set(facts: dict[str, object], flag: str, value: str) -> None:
    assert value_of(process(**facts).command, flag) == value
    assert flag not in process().command


def test_the_prefix_cache_is_on_or_off_by_the_spec() -> None:
    assert "--enable-prefix-caching" in process().command
    assert "--no-enable-prefix-caching" in process(prefix_cache=False).command


def test_adapters_are_loaded_by_name() -> None:
    command = process(loras=(("sql", "/a/sql"), ("law", "org/law"))).command
    place = command.index("--lora-modules")
    assert [json.loads(word) for word in command[place + 1 : place + 3]] == [
        {"name": "sql", "path": "/a/sql"}, {"name": "law", "path": "org/law"},
    ]  # fmt: skip
    assert value_of(command, "--max-loras") == "2"
    many = tuple((f"a{i}", "/a") for i in range(20))
    assert value_of(process(loras=many).command, "--max-loras") == "8"


def test_the_users_arguments_come_last() -> None:
    assert process(args=("--enforce-eager", "--seed", "1")).command[-3:] == ("--enforce-eager", "--seed", "1")


def test_peers_reach_the_side_channel_and_the_ports_that_ucx_is_pinned_to() -> None:
    found = process()
    assert found.environment["UCX_TCP_PORT_RANGE"] == "21000-21255"
    assert found.peer_ports == ((5600, 5600), (21000, 21255))
    assert found.address_variables == ("VLLM_NIXL_SIDE_CHANNEL_HOST",)


def test_users_can_not_set_what_the_operator_sets() -> None:
    """The devices and transports of UCX and the binding of threads may be tuned."""
    facts: EnginePool = pool(accelerators=0)
    assert ENGINE.process is not None
    rendered = {*ENGINE.process(facts).environment, *process().environment, *process().address_variables}
    free = {"UCX_NET_DEVICES", "UCX_TLS", "VLLM_NO_USAGE_STATS", "VLLM_TARGET_DEVICE", "VLLM_CPU_OMP_THREADS_BIND"}
    assert rendered - set(ENGINE.reserved) == free
