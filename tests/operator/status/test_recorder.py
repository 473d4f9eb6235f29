"""Tests of the limit on Events, and of the operator's settings."""

from __future__ import annotations

import pytest

from disagg_operator.settings import BadSettings, load
from disagg_operator.status.recorder import NORMAL, WARNING, EventLimiter, Note

PULL = Note(WARNING, "ImagePullFailed", "no such image")


def test_a_reason_is_said_once_in_ten_minutes_per_object() -> None:
    limiter = EventLimiter()
    assert limiter.allows("a", PULL, 0.0)
    assert not limiter.allows("a", Note(WARNING, "ImagePullFailed", "other words"), 599.0)
    assert limiter.allows("b", PULL, 1.0)
    assert limiter.allows("a", PULL, 600.0)


def test_scaling_is_said_whenever_it_differs() -> None:
    limiter = EventLimiter()
    assert limiter.allows("a", Note(NORMAL, "ScaledUp", "1 -> 2"), 0.0)
    assert limiter.allows("a", Note(NORMAL, "ScaledUp", "2 -> 3"), 1.0)
    assert not limiter.allows("a", Note(NORMAL, "ScaledUp", "2 -> 3"), 2.0)


def test_the_limiter_is_bounded() -> None:
    limiter = EventLimiter(max_entries=2)
    for uid in "abc":
        limiter.allows(uid, PULL, 0.0)
    assert limiter.allows("a", PULL, 1.0)
    assert not limiter.allows("c", PULL, 1.0)


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
    ],
)
def test_a_bad_setting_is_named(environ: dict[str, str], variable: str) -> None:
    with pytest.raises(BadSettings, match=variable):
        load(environ)
