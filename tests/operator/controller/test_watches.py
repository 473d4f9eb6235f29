"""The settings of the watches that let them outlive an API server."""

from __future__ import annotations

import itertools

import kopf
from kopf._cogs.structs.references import Resource as KopfResource

from disagg_operator.controller.watches import Pauses, configure_kopf
from disagg_operator.kube.cache import KEPT
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL
from disagg_wire.labels import LABEL_DEPLOYMENT


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


def test_the_api_server_passes_only_what_carries_our_label() -> None:
    settings = kopf.OperatorSettings()
    configure_kopf(settings, scans=True, silence_s=70.0)
    for kind in KEPT:
        group, _, number = kind.api_version.rpartition("/")
        chosen = settings.watching.label_selectors.collect(KopfResource(group, number, kind.plural, namespaced=True))
        assert [*chosen] == ([] if kind in (DISAGG_DEPLOYMENT, DISAGG_POOL) else [LABEL_DEPLOYMENT])
