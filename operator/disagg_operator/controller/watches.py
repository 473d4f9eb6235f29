"""The watches, which are the only part of kopf that is used.

An event updates the cache, and the key of the resource that it concerns is queued. Only `on.event`
handlers are registered: with them kopf writes nothing (no finalizer, no annotation), and a lost or
repeated event does no harm, because a reconcile reads the cluster itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import kopf
from kopf._cogs.clients import api as kopf_api

from disagg_operator.kube.cache import KEPT
from disagg_operator.kube.credentials import Credentials
from disagg_operator.kube.json_text import loads
from disagg_operator.kube.listings import Listing, Listings
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, GROUP, Resource
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

Sink = Callable[[Resource, str | None, Obj], None]
ListSink = Callable[[Listing], None]


_LABELLED = tuple(resource for resource in KEPT if resource not in (DISAGG_DEPLOYMENT, DISAGG_POOL))
# The longest pause between two attempts to list or watch, in seconds, before the jitter.
_MAX_PAUSE_S = 16.0


class Pauses:
    """The pauses between the attempts of one request: 1, 2, 4 ... s with jitter, without end.

    With kopf's own, a request fails for good after a minute and a half, and with it all watches.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance

    def __iter__(self) -> Iterator[float]:
        pause_s = 1.0
        while True:
            yield pause_s * (1 + 0.25 * self._chance())
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def build_registry(
    sink: Sink, listed: ListSink, credentials: Credentials, *, scans: bool = True, silence_s: float = 70.0
) -> kopf.OperatorRegistry:
    """Return handlers that pass (resource, event type, object) to `sink` on kopf's own thread.

    Each list with which a watch begins goes to `listed`. With `scans`, kopf also watches which
    kinds and namespaces exist. A stream that was silent for `silence_s` seconds is opened anew.
    """
    _read_in_our_way(listed)
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        credentials.reload()
        header = credentials.headers().get("Authorization")
        return kopf.ConnectionInfo(
            server=credentials.server,
            ca_path=credentials.ca_file,
            insecure=credentials.insecure,
            certificate_path=credentials.cert_file,
            private_key_path=credentials.key_file,
            token=None if header is None else header.removeprefix("Bearer "),
            priority=random.randint(0, 2**16),
        )

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings, scans=scans, silence_s=silence_s)

    for resource in KEPT:
        _watch(registry, resource, sink)
    return registry


def _read_in_our_way(listed: ListSink) -> None:
    """Let kopf parse JSON as the rest of the operator does, and tell of the lists that it reads.

    An object that Python's parser cannot take would end its watch of a whole kind, again at every
    restart.
    """
    listings = Listings(KEPT)

    async def get(url: str, **options: Any) -> Any:
        async with await kopf_api.request(method="get", url=url, **options) as response:
            answer = loads(await response.text())
        if (listing := listings.page(url, answer)) is not None:
            listed(listing)
        return answer

    kopf_api.get = get
    kopf_api.json = SimpleNamespace(loads=loads)  # type: ignore[attr-defined, assignment]


def _watch(registry: kopf.OperatorRegistry, resource: Resource, sink: Sink) -> None:
    group, _, version = resource.api_version.rpartition("/")

    # kopf passes keyword arguments, and later versions may pass more of them.
    async def on_event(event: kopf.RawEvent, **_: Any) -> None:
        sink(resource, event["type"], dict(event["object"]))

    kopf.on.event(group, version, resource.plural, registry=registry, id=f"watch-{resource.plural}")(on_event)


def configure_kopf(settings: kopf.OperatorSettings, *, scans: bool, silence_s: float) -> None:
    """Configure kopf to write nothing to objects, not to peer, and to end silent streams."""
    settings.scanning.disabled = not scans
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.finalizer = f"{GROUP}/kopf-finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{GROUP}")
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = silence_s
    for resource in _LABELLED:  # the API server passes only what carries the label
        group, _, version = resource.api_version.rpartition("/")
        settings.watching.label_selectors[group, version, resource.plural] = LABEL_DEPLOYMENT
    settings.networking.error_backoffs = Pauses()
    settings.networking.request_timeout = 30
    settings.process.ultimate_exiting_timeout = None
