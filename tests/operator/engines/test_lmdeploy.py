"""Tests of the command and the environment of LMDeploy."""

from __future__ import annotations

import pytest
from tests.operator.engines.pools import pool, value_of

from disagg_operator.engines.contract import EngineProcess
from disagg_operator.engines.launch import KEY_PLACE
from disagg_operator.engines.lmdeploy import ENGINE


def process(**facts: object) -> EngineProcess:
    assert ENGINE.process is not None
    return ENGINE.process(pool(**facts))


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_every_worker_does_both(role: str) -> None:
    found = process(role=role)
    assert found.role == "both"
    assert found.peer_ports == ()
    assert "--role" not in found.command
    assert value_of(found.command, "--server-name") == "127.0.0.1"


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_experiment_splits_the_roles(role: str) -> None:
    found = process(role=role, experimental=True)
    assert found.role == role
    assert value_of(found.command, "--role") == role.capitalize()
    assert found.peer_ports
    assert found.sysctls


def test_prefill_of_the_experiment_is_reached_by_those_who_have_its_key() -> None:
    found = process(role="prefill", experimental=True)
    assert found.guarded
    assert value_of(found.command, "--server-name") == "$(DISAGG_HOST)"
    assert value_of(found.command, "--api-keys") == KEY_PLACE
    other = process(role="decode", experimental=True)
    assert not other.guarded
    assert value_of(other.command, "--server-name") == "127.0.0.1"
    assert "--api-keys" not in other.command


@pytest.mark.parametrize(
    ("facts", "flag", "value"),
    [({"revision": "v1"}, "--revision", "v1"), ({"max_model_len": 4096}, "--session-len", "4096")],
)
def test_an_optional_field_is_a_flag_only_where_it_is_set(facts: dict[str, object], flag: str, value: str) -> None:
    assert value_of(process(**facts).command, flag) == value
    assert flag not in process().command


def test_the_prefix_cache_which_knows_no_tenants_is_off() -> None:
    assert "--enable-prefix-caching" not in process(prefix_cache=True).command
    assert set(process().environment) <= set(ENGINE.reserved)
