"""Tests of the settings, which are read from the environment; the error for a bad one names it."""

from __future__ import annotations

import pytest

from disagg_operator.settings import BadSettings, load

IMAGES = {"DISAGG_WORKER_IMAGE": "w", "DISAGG_ROUTER_IMAGE": "r"}


def test_settings_come_from_the_environment() -> None:
    settings = load({**IMAGES, "DISAGG_SCRAPE_INTERVAL_S": "1.5", "PATH": "/bin"})
    assert (settings.worker_image, settings.scrape_interval_s, settings.watch_namespace) == ("w", 1.5, "")


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({}, "DISAGG_WORKER_IMAGE"),
        ({**IMAGES, "DISAGG_WORKERS": "0"}, "DISAGG_WORKERS"),
        ({**IMAGES, "DISAGG_RESYNC_INTERVAL_S": "soon"}, "DISAGG_RESYNC_INTERVAL_S"),
        ({**IMAGES, "DISAGG_WATCH_NAMESPACE": "a,,b"}, "DISAGG_WATCH_NAMESPACE"),
        ({**IMAGES, "DISAGG_LEASE_DURATION_S": "9"}, "DISAGG_LEASE_DURATION_S must be above"),
        ({**IMAGES, "DISAGG_LEASE_RETRY_S": "10"}, "above DISAGG_LEASE_RETRY_S"),
    ],
)
def test_a_bad_setting_is_named(environ: dict[str, str], variable: str) -> None:
    with pytest.raises(BadSettings, match=variable):
        load(environ)


@pytest.mark.parametrize(
    ("value", "namespaces"), [("", ()), ("ml", ("ml",)), ("ml,research,ml", ("ml", "research"))], ids=str
)
def test_namespaces_are_separated_by_commas(value: str, namespaces: tuple[str, ...]) -> None:
    assert load({**IMAGES, "DISAGG_WATCH_NAMESPACE": value}).namespaces == namespaces
