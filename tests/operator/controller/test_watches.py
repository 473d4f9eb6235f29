"""The settings of the watches that let them outlive an API server."""

from __future__ import annotations

import itertools

import kopf

from disagg_operator.controller.watches import Pauses, configure_kopf


def test_attempts_never_end_and_come_apart() -> None:
    low = list(itertools.islice(Pauses(lambda: 0.0), 1000))
    assert low[:6] == [1, 2, 4, 8, 16, 16]
    high = list(itertools.islice(Pauses(lambda: 1.0), 1000))
    assert max(high) == 20
    assert all(a < b for a, b in zip(low, high, strict=True))


def test_each_request_begins_with_the_shortest_pause() -> None:
    pauses = Pauses(lambda: 0.0)
    assert next(iter(pauses)) == next(iter(pauses)) == 1


def test_kopf_uses_them_and_opens_silent_streams_anew() -> None:
    settings = kopf.OperatorSettings()
    configure_kopf(settings, scans=True, silence_s=70.0)
    assert isinstance(settings.networking.error_backoffs, Pauses)
    assert settings.watching.inactivity_timeout == 70.0
