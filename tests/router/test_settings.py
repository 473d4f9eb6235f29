"""Tests that settings name what is wrong and have no default secrets."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from disagg_router.settings import from_environment
from disagg_wire.environment import SettingsError

GOOD = {"DISAGG_MODEL_NAME": "m", "DISAGG_CLUSTER_KEY_FILE": "/none", "DISAGG_MEMBERSHIP": "file:///m.json"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"DISAGG_MODEL_NAME": ""}, "DISAGG_MODEL_NAME"),
        ({"DISAGG_PORT": "x"}, "DISAGG_PORT"),
        ({"DISAGG_PORT": "70000"}, "DISAGG_PORT"),
        ({"DISAGG_MEMBERSHIP": "http://evil"}, "DISAGG_MEMBERSHIP"),
        ({"DISAGG_MEMBERSHIP": "kubernetes"}, "DISAGG_NAMESPACE"),
        ({"DISAGG_MAX_ATTEMPTS": "0"}, "DISAGG_MAX_ATTEMPTS"),
        ({"DISAGG_QUEUE_MAX_WAIT_S": "-1"}, "DISAGG_QUEUE_MAX_WAIT_S"),
        ({"DISAGG_QUEUE_ORDER": "Random"}, "DISAGG_QUEUE_ORDER"),
        ({"DISAGG_LOG_LEVEL": "loud"}, "DISAGG_LOG_LEVEL"),
    ],
)
def test_a_wrong_variable_is_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        from_environment(GOOD | change)


def test_the_defaults_and_what_an_empty_variable_means() -> None:
    s = from_environment(GOOD | {"DISAGG_PORT": "", "OTHER": "x"})
    assert (s.host, s.port, s.queue_max_depth, s.queue_max_wait_s, s.max_attempts) == ("127.0.0.1", 8080, 1024, 60.0, 4)
    kubernetes = from_environment(
        GOOD | {"DISAGG_MEMBERSHIP": "kubernetes", "DISAGG_NAMESPACE": "n", "DISAGG_DEPLOYMENT": "d"}
    )
    assert (s.grace_s, kubernetes.grace_s) == (0.0, 5.0)
    assert from_environment(GOOD | {"DISAGG_DRAIN_GRACE_S": "2"}).grace_s == 2.0


@pytest.mark.parametrize(
    ("given", "ordered", "patience_s"),
    [
        ({}, False, 0.0),
        ({"DISAGG_OBJECTIVE_TTFT_S": "1"}, True, 20.0),
        (
            {"DISAGG_OBJECTIVE_TTFT_S": "1", "DISAGG_QUEUE_ORDER": "EarliestDeadline", "DISAGG_QUEUE_MAX_WAIT_S": "30"},
            True,
            10.0,
        ),
        ({"DISAGG_OBJECTIVE_TTFT_S": "1", "DISAGG_QUEUE_ORDER": "FirstComeFirstServed"}, False, 0.0),
    ],
)
def test_the_queue_goes_by_deadlines_where_there_are_any(
    given: dict[str, str], ordered: bool, patience_s: float
) -> None:
    s = from_environment(GOOD | given)
    assert (s.deadlines is not None, s.queue_patience_s) == (ordered, patience_s)


@pytest.mark.parametrize("key", [None, b"", b"short", b" " * 40])
def test_a_missing_or_short_cluster_key_is_refused(tmp_path: Path, key: bytes | None) -> None:
    if key is not None:
        (tmp_path / "key").write_bytes(key)
    with pytest.raises(SettingsError, match="CLUSTER_KEY_FILE"):
        from_environment(GOOD | {"DISAGG_CLUSTER_KEY_FILE": str(tmp_path / "key")}).bearer()


def test_the_bearer_is_the_one_of_the_protocol(tmp_path: Path) -> None:
    key = b"k" * 32
    (tmp_path / "key").write_bytes(key + b"\n")
    s = from_environment(GOOD | {"DISAGG_CLUSTER_KEY_FILE": str(tmp_path / "key")})
    assert s.bearer() == hmac.new(key, b"disagg-http-v1", hashlib.sha256).hexdigest()


def test_an_empty_or_missing_file_of_api_keys_is_refused_not_taken_for_no_keys(tmp_path: Path) -> None:
    for content in (None, "", "\n \n"):
        if content is not None:
            (tmp_path / "keys").write_text(content)
        with pytest.raises(SettingsError, match="API_KEYS_FILE"):
            from_environment(GOOD | {"DISAGG_API_KEYS_FILE": str(tmp_path / "keys")}).api_keys()
    (tmp_path / "keys").write_text("a\n\nb\n")
    keys = from_environment(GOOD | {"DISAGG_API_KEYS_FILE": str(tmp_path / "keys")}).api_keys()
    assert [k.key for k in keys] == ["a", "b"]
    assert from_environment(GOOD).api_keys() == ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 110.0),
        ({"DISAGG_HOLD_MAX_WAIT_S": "300"}, 410.0),
        ({"DISAGG_HOLD_MAX_WAIT_S": "300", "DISAGG_DRAIN_TIMEOUT_S": "5"}, 5.0),
    ],
)
def test_a_router_that_ends_outlasts_what_it_may_hold(values: dict[str, str], expected: float) -> None:
    assert from_environment(GOOD | values).drain_s == expected
