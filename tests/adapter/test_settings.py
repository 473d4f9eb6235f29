"""Tests of the adapter's settings: each wrong variable is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_adapter.settings import from_environment
from disagg_wire.engines import VLLM
from disagg_wire.environment import AdapterOption, AdapterVariable, SettingsError

GOOD = {
    str(AdapterVariable.ROLE): "decode",
    str(AdapterVariable.ENGINE): VLLM,
    str(AdapterVariable.MODEL_URI): "hf://org/model",
    str(AdapterVariable.MODEL_NAME): "chat",
    str(AdapterVariable.MODEL_FILES): "/model",
    str(AdapterVariable.CLUSTER_KEY_FILE): "/keys/cluster",
}


def test_what_is_not_set_has_its_default() -> None:
    s = from_environment(GOOD | {AdapterVariable.HOST: ""})
    assert (s.address, s.host, s.lora_adapters) == ("http://127.0.0.1:8100", "127.0.0.1", [])
    assert s.model_copy(update={"engine_host": "::1"}).address == "http://[::1]:8100"
    assert s.engine_key() is None


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        from_environment({k: v for k, v in GOOD.items() if k != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (AdapterVariable.ENGINE, "builtin"),
        (AdapterVariable.ROLE, "router"),
        (AdapterVariable.ENGINE_PORT, "70000"),
        (AdapterVariable.TENSOR_RATIO, "8"),
        (AdapterVariable.LEASE_S, "0"),
        (AdapterVariable.TRANSPORT, "udp"),
        (AdapterVariable.LORA_ADAPTERS, "polite"),
        (AdapterVariable.LORA_ADAPTERS, '{"a": 1}'),
        (AdapterOption.PROBE_AFTER_S, "soon"),
    ],
)
def test_a_wrong_value_is_refused_by_the_variables_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=str(name)):
        from_environment(GOOD | {str(name): value})


def test_a_hung_engine_is_found_within_15_seconds_unless_the_settings_say_otherwise() -> None:
    found = from_environment(GOOD)
    assert found.probe_after_s + found.probe_timeout_s <= 15.0
    more = from_environment(GOOD | {AdapterOption.PROBE_AFTER_S: "60", AdapterOption.PROBE_TIMEOUT_S: "90"})
    assert (more.probe_after_s, more.probe_timeout_s) == (60.0, 90.0)


def test_lists_and_numbers_are_read() -> None:
    found = from_environment(GOOD | {AdapterVariable.LORA_ADAPTERS: '["a", "b"]', AdapterVariable.EXPERIMENTAL: "true"})
    assert (found.lora_adapters, found.experimental) == (["a", "b"], True)


def test_keys_are_read_from_files_that_must_hold_one(tmp_path: Path) -> None:
    for name, ask in (
        (AdapterVariable.CLUSTER_KEY_FILE, "cluster_key"),
        (AdapterVariable.ENGINE_KEY_FILE, "engine_key"),
    ):
        file = tmp_path / ask
        settings = from_environment(GOOD | {str(name): str(file)})
        with pytest.raises(SettingsError, match=str(name)):
            getattr(settings, ask)()
        file.write_text("short")
        with pytest.raises(SettingsError, match=str(name)):
            getattr(settings, ask)()
        file.write_text("k" * 32 + "\n")
        assert getattr(settings, ask)() in ("k" * 32, b"k" * 32)
    (tmp_path / "engine_key").write_bytes(b"\xff" * 32)
    with pytest.raises(SettingsError, match=str(AdapterVariable.ENGINE_KEY_FILE)):
        from_environment(GOOD | {AdapterVariable.ENGINE_KEY_FILE: str(tmp_path / "engine_key")}).engine_key()
