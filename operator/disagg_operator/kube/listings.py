"""PURE: Puts the pages together with which a watch begins, or begins anew.

A watch that was broken for long can't be continued. It lists what exists and goes on from there,
and nobody tells it of what was deleted meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from disagg_operator.kube.resources import Resource, name_of, namespace_of
from disagg_operator.vocabulary import Key


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of a kind that exist in a version of the store."""

    resource: Resource
    namespace: str
    """The namespace that was listed; empty: all of them."""
    keys: frozenset[Key]
    version: int


class Listings:
    """The lists that are being read, of which `page` returns each that is complete."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        self._resources = resources
        self._keys: dict[tuple[str, str], set[Key]] = {}

    def page(self, url: str, answer: Any) -> Listing | None:
        """Take the answer to a GET. Returns the list if that was its last page."""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        which = next(((r, space) for r in self._resources if (space := _space(path, r)) is not None), None)
        if which is None or not isinstance(answer, dict) or "items" not in answer:
            return None
        resource, namespace = which
        if "continue" not in query:
            self._keys[resource.kind, namespace] = set()
        keys = self._keys.setdefault((resource.kind, namespace), set())
        keys.update((namespace_of(obj) or "", name_of(obj)) for obj in answer["items"] or [])
        meta = answer.get("metadata") or {}
        if meta.get("continue"):
            return None
        version = str(meta.get("resourceVersion", ""))
        del self._keys[resource.kind, namespace]
        return Listing(resource, namespace, frozenset(keys), int(version) if version.isdecimal() else 0)


def _space(path: str, resource: Resource) -> str | None:
    """Return the namespace of a path at which a kind is listed, "" for all, or None."""
    whole = resource.path(None)
    if path.endswith(whole):
        return ""
    prefix, _, plural = whole.rpartition("/")
    _, found, rest = path.partition(f"{prefix}/namespaces/")
    space, _, tail = rest.partition("/")
    return space if found and tail == plural else None
