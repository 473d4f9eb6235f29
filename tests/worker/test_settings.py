"""Tests of the settings: every field is a variable, and a wrong variable is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_wire.environment import SettingsError
from disagg_worker.settings import Settings, from_environment

GOOD = {
    "DISAGG_ROLE": "decode",
    "DISAGG_MODEL_URI": "file:///m",
    "DISAGG_MODEL_NAME": "chat",
    "DISAGG_CLUSTER_KEY_FILE": "/key",
}


def test_defaults_bind_to_this_host_only() -> None:
    s = from_environment(GOOD | {"PATH": "/bin", "DISAGG_REVISION": ""})
    assert (s.host, s.port, s.kv_port, s.kv_interface, s.max_model_len) == ("127.0.0.1", 8000, 9000, "", None)
    assert (s.ticket_lifetime_s, s.drain_timeout_s, s.max_running, s.max_waiting) == (30.0, 300.0, 64, 256)
    assert (s.transfer_integrity, s.transfer_connections) == ("mac", 2)


def test_every_field_is_a_variable() -> None:
    given = from_environment(
        GOOD | {"DISAGG_KV_INTERFACE": "net1", "DISAGG_THREADS": "4", "DISAGG_PREFILL_WAIT_S": "0.1"}
    )
    assert (given.kv_interface, given.threads, given.prefill_wait_s) == ("net1", 4, 0.1)


def test_the_cache_can_be_set() -> None:
    s = from_environment(GOOD)
    assert (s.device, s.prefix_cache, s.eviction, s.host_cache_bytes) == ("auto", True, "lru", 0)
    given = from_environment(
        GOOD | {"DISAGG_PREFIX_CACHE": "off", "DISAGG_EVICTION": "fifo", "DISAGG_HOST_CACHE_BYTES": "1000"}
    )
    assert (given.prefix_cache, given.eviction, given.host_cache_bytes) == (False, "fifo", 1000)
    given = from_environment(
        GOOD | {"DISAGG_GROWTH_RESERVE_TOKENS": "7", "DISAGG_SATURATING_TOKENS": "9", "DISAGG_DEVICE": "plain"}
    )
    assert (given.growth_reserve_tokens, given.saturating_tokens, given.device) == (7, 9, "plain")


@pytest.mark.parametrize("name", GOOD)
def test_what_has_no_default_must_be_set(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        from_environment({k: v for k, v in GOOD.items() if k != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROLE", "router"),
        ("PORT", "tcp://10.0.0.1:80"),  # Kubernetes injects this for a Service with the name `disagg`.
        ("PORT", "65536"),
        ("DTYPE", "int8"),
        ("BLOCK_SIZE_TOKENS", "0"),
        ("KV_CACHE_BYTES", "1Gi"),
        ("PREFILL_UTILISATION", "1.5"),
        ("TRANSFER_CONNECTIONS", "5"),
        ("TRANSFER_INTEGRITY", "none"),
        ("DEVICE", "tpu"),
        ("QUANTIZATION", "int3"),
        ("EVICTION", "random"),
        ("HOST_CACHE_BYTES", "-1"),
        ("GROWTH_RESERVE_TOKENS", "0"),
        ("PREFIX_CACHE", "maybe"),
        ("DRAIN_TIMEOUT_S", "-1"),
        ("TICKET_LIFETIME_S", "nan"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"DISAGG_{name}"):
        from_environment(GOOD | {f"DISAGG_{name}": value})


def test_all_wrong_variables_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"DISAGG_ROLE.*DISAGG_PORT"):
        from_environment(GOOD | {"DISAGG_ROLE": "x", "DISAGG_PORT": "y"})


def _with_key(path: Path) -> Settings:
    return from_environment(GOOD | {"DISAGG_CLUSTER_KEY_FILE": str(path)})


def test_the_clusters_key_is_read_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32 + b"\n")
    assert _with_key(tmp_path / "key").cluster_key() == b"k" * 32


@pytest.mark.parametrize("content", [None, b"", b"k" * 31, b"k" * 20 + b"\n" * 20])
def test_without_a_long_enough_key_it_refuses_to_start(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(SettingsError, match="DISAGG_CLUSTER_KEY_FILE"):
        _with_key(tmp_path / "key").cluster_key()
