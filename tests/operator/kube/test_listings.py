"""The lists with which watches begin: put together of pages, they tell what exists no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kopf._cogs.clients import api as kopf_api
from kopf._cogs.clients.fetching import fetch_objs
from kopf._cogs.structs.references import NamespaceName

from disagg_operator.controller import watches
from disagg_operator.kube.cache import KEPT, Cache
from disagg_operator.kube.listings import Listing, Listings
from disagg_operator.kube.resources import POD, SERVICE
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

PODS = "/api/v1/pods"


def page(*names: str, version: str = "9", more: str = "") -> Obj:
    items = [{"metadata": {"name": name, "namespace": "n"}} for name in names]
    return {"items": items, "metadata": {"resourceVersion": version, "continue": more}}


@pytest.mark.parametrize(
    ("url", "resource", "namespace"),
    [
        (PODS, POD, ""),
        (f"{PODS}?labelSelector=a%2Cb&limit=5", POD, ""),
        (f"https://host:6443{PODS}", POD, ""),
        (f"https://host/k8s/clusters/c{PODS}", POD, ""),
        ("/api/v1/namespaces/n/pods", POD, "n"),
        ("/api/v1/namespaces/n/services?limit=5", SERVICE, "n"),
    ],
)
def test_a_list_in_one_page(url: str, resource: Any, namespace: str) -> None:
    found = Listings(KEPT).page(url, page("a", "b"))
    assert found == Listing(resource, namespace, frozenset({("n", "a"), ("n", "b")}), 9)


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("/api/v1/nodes", page("a")), ("/api/v1/namespaces/n/pods/a", page("a")), ("/api/v1", {"resources": []}),
        ("/api/v1/namespaces", page("n")), (PODS, {"kind": "Status"}), (PODS, []), (PODS, None),
        ("/apis/other.dev/v1/namespaces/n/pods", page("a")),
    ],
)  # fmt: skip
def test_what_is_no_list_of_a_watched_kind_tells_nothing(url: str, answer: Any) -> None:
    assert Listings(KEPT).page(url, answer) is None


def test_a_list_is_complete_with_its_last_page_and_begins_anew_with_its_first() -> None:
    listings = Listings(KEPT)
    assert listings.page(PODS, page("lost", more="t")) is None
    assert listings.page(PODS, page("a", more="t")) is None
    assert listings.page(f"{PODS}?continue=t", page("b", more="u")) is None
    assert listings.page(f"{PODS}?continue=u", page(version="x")) == Listing(
        POD, "", frozenset({("n", "a"), ("n", "b")}), 0
    )


def pod(name: str, version: int, namespace: str = "n") -> Obj:
    labels = {LABEL_DEPLOYMENT: name}
    meta = {"name": name, "namespace": namespace, "uid": name, "resourceVersion": str(version), "labels": labels}
    return {"kind": "Pod", "metadata": meta}


def test_what_was_deleted_before_a_list_is_dropped_and_what_is_newer_or_elsewhere_stays() -> None:
    cache = Cache()
    for obj in (pod("gone", 3), pod("here", 4), pod("new", 8), pod("there", 2, "other")):
        cache.put(POD, obj)
    keys = frozenset({("n", "here")})
    assert cache.drop_unlisted(Listing(POD, "n", keys, 7)) == {("n", "gone")}
    assert {obj["metadata"]["name"] for obj in cache.objects(POD)} == {"here", "new", "there"}
    assert cache.drop_unlisted(Listing(POD, "", keys, 9)) == {("n", "new"), ("other", "there")}


class Response:
    def __init__(self, answer: str) -> None:
        self._answer = answer

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def text(self) -> str:
        return self._answer


async def test_the_lists_that_kopf_reads_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(
        [
            '{"items": [{"metadata": {"name": "a", "namespace": "n"}}], "metadata": {"continue": "t"}}',
            '{"items": [], "metadata": {"resourceVersion": "7"}}',
        ]
    )

    async def request(method: str, url: str, **_: Any) -> Response:
        return Response(next(answers))

    for name in ("get", "json", "request"):
        monkeypatch.setattr(kopf_api, name, getattr(kopf_api, name))  # as it was, when the test is over
    told: list[Listing] = []
    watches._read_in_our_way(told.append)
    monkeypatch.setattr(kopf_api, "request", request)
    no_selectors: Any = SimpleNamespace(collect=lambda _: [])
    settings: Any = SimpleNamespace(
        watching=SimpleNamespace(
            label_selectors=no_selectors, field_selectors=no_selectors, shard_selectors=no_selectors, chunk_size=1
        )
    )

    def get_url(*, namespace: str, params: dict[str, str]) -> str:
        return f"/api/v1/namespaces/{namespace}/pods?" + "&".join(f"{k}={v}" for k, v in params.items())

    kind: Any = SimpleNamespace(get_url=get_url)
    logger: Any = None
    space = NamespaceName("n")
    seen = [
        len(chunk) async for chunk, _ in fetch_objs(settings=settings, resource=kind, namespace=space, logger=logger)
    ]
    assert (seen, told) == ([1, 0], [Listing(POD, "n", frozenset({("n", "a")}), 7)])
