"""The client of the API server. It exchanges plain dicts and applies them as one field manager.

Except for the watches, all calls to the API server go through it. Guarantees: every call has a
deadline; after a 429, a 5xx or a broken connection a call is tried again within that deadline,
honouring Retry-After; a response is never parsed into a model, so no field of an object is lost;
bodies and tokens are never logged; an operator that does not lead sends no write.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from disagg_operator.kube.connections import Connections, NotSent, Reply, Unanswered
from disagg_operator.kube.credentials import Credentials
from disagg_operator.kube.errors import (
    FieldError,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    NotLeading,
    Retry,
    from_status,
)
from disagg_operator.kube.json_text import loads
from disagg_operator.kube.resources import EVENT, POD, Resource, name_of, namespace_of, resource_of
from disagg_operator.vocabulary import FIELD_MANAGER, Obj, Objs

log = logging.getLogger(__name__)

_PAGE = 500
_MAX_PAGES = 200


class Kube(Protocol):
    """The calls that the operator makes to a cluster. Every method raises KubeError."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        """Return the object, or None if it does not exist."""

    async def list(self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = "") -> Objs:
        """Return all objects with apiVersion and kind filled in; none if an optional API is absent.

        `labels` is a label selector, `fields` a field selector.
        """

    async def apply(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        """Apply an object by a forced server-side apply and return it as stored.

        If metadata.resourceVersion is set, raises Conflict when the object has changed since.
        """

    async def apply_status(self, obj: Obj) -> Obj:
        """Apply the status subresource of an object by a server-side apply."""

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Obj) -> Obj:
        """Send a JSON merge patch, for a field not owned by the operator (a pod's annotation)."""

    async def delete(self, obj: Obj) -> None:
        """Delete exactly this object; do nothing if it does not exist.

        Its uid and resourceVersion are the preconditions of the deletion.
        """

    async def create_event(self, event: Obj) -> None:
        """Create a core/v1 Event."""

    async def version(self) -> str:
        """Return the version of the API server, such as v1.37.0."""

    async def has_api(self, resource: Resource) -> bool:
        """Return whether the cluster serves this kind."""


def _is_unknown_part(path: str, words: str) -> bool:
    return path.startswith("status.") and "not declared in schema" in words


class HttpKube:
    """The implementation of `Kube` over HTTP."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        deadline_s: float = 15.0,
        attempts: int = 4,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._credentials = credentials
        self._deadline_s = deadline_s
        self._attempts = attempts
        self._jitter = jitter
        self.writes = 0  # number of requests that could change something; tests and metrics read it
        # The seconds in which a write that begins now must end; 0 if this operator must not write.
        self.write_within_s: Callable[[], float] = lambda: math.inf
        self._connections = Connections(credentials)

    async def close(self) -> None:
        await self._connections.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        try:
            return await self._call("GET", resource.path(namespace, name))
        except NotFound:
            return None

    async def list(self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = "") -> Objs:
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        for _ in range(3):  # a continue token may expire between two pages; the list then starts over
            try:
                return await self._list_once(resource, namespace, {k: v for k, v in selectors.items() if v})
            except Gone:
                continue
            except NotFound:
                if resource.optional:
                    return []
                raise
        raise Retry(f"LIST {resource.plural}: the continue token expired three times")

    async def _list_once(self, resource: Resource, namespace: str | None, selectors: dict[str, str]) -> Objs:
        params = {"limit": str(_PAGE)} | selectors
        items: Objs = []
        for _ in range(_MAX_PAGES):
            page = await self._call("GET", resource.path(namespace), params=params)
            # Items of a list carry neither apiVersion nor kind.
            head = {"apiVersion": resource.api_version, "kind": resource.kind}
            items.extend(head | item for item in page.get("items") or [])
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            params = params | {"continue": token}
        raise KubeError(f"LIST {resource.plural}: more than {_PAGE * _MAX_PAGES} objects")

    async def apply(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        return await self._apply(obj, "", dry_run)

    async def apply_status(self, obj: Obj) -> Obj:
        """Apply a status, without the parts that the CRDs of an earlier release do not know."""
        try:
            return await self._apply(obj, "/status")
        except Invalid as error:
            unknown = {path.split(".")[1] for path, words in error.fields if _is_unknown_part(path, words)}
            if not unknown:
                raise
            known = {name: value for name, value in obj["status"].items() if name not in unknown}
            return await self._apply({**obj, "status": known}, "/status")

    async def _apply(self, obj: Obj, subresource: str, dry_run: bool = False) -> Obj:
        path = resource_of(obj).path(namespace_of(obj), name_of(obj)) + subresource
        params = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        params |= {"dryRun": "All"} if dry_run else {}
        return await self._call("PATCH", path, params=params, body=obj, content_type="application/apply-patch+yaml")

    async def merge(
        self, resource: Resource, namespace: str | None, name: str, patch: Obj, *, manager: str = FIELD_MANAGER
    ) -> Obj:
        path = resource.path(namespace, name)
        params = {"fieldManager": manager}
        return await self._call("PATCH", path, params=params, body=patch, content_type="application/merge-patch+json")

    async def delete(self, obj: Obj) -> None:
        meta = obj["metadata"]
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        }
        try:
            await self._call("DELETE", resource_of(obj).path(namespace_of(obj), name_of(obj)), body=options)
        except NotFound:
            return

    async def create_event(self, event: Obj) -> None:
        await self._call("POST", EVENT.path(namespace_of(event)), body=event, attempts=1)

    async def create(self, obj: Obj) -> Obj:
        """Create an object. Raises Conflict if it exists."""
        return await self._call("POST", resource_of(obj).path(namespace_of(obj)), body=obj)

    async def replace(self, obj: Obj) -> Obj:
        """Replace an object. Raises Conflict if it has changed since it was read."""
        return await self._call("PUT", resource_of(obj).path(namespace_of(obj), name_of(obj)), body=obj)

    async def scale_of(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        """Return the Scale of an object of any kind, or None if it does not exist."""
        try:
            return await self._call("GET", f"{resource.path(namespace, name)}/scale")
        except NotFound:
            return None

    async def set_scale(self, resource: Resource, scale: Obj, replicas: int) -> None:
        """Set the replicas of an object.

        Raises Conflict if it has changed since its Scale was read.
        """
        path = f"{resource.path(namespace_of(scale), name_of(scale))}/scale"
        patch = {
            "metadata": {"resourceVersion": scale["metadata"]["resourceVersion"]}, "spec": {"replicas": replicas},
        }  # fmt: skip
        params = {"fieldManager": FIELD_MANAGER}
        await self._call("PATCH", path, params=params, body=patch, content_type="application/merge-patch+json")

    async def kinds_of(self, api_version: str) -> Objs:
        """Return what the API server says of the kinds of an API group, which may be absent."""
        prefix = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        try:
            return list((await self._call("GET", prefix)).get("resources") or [])
        except NotFound:
            return []

    async def version(self) -> str:
        return str((await self._call("GET", "/version")).get("gitVersion", "unknown"))

    async def has_api(self, resource: Resource) -> bool:
        return any(kind.get("name") == resource.plural for kind in await self.kinds_of(resource.api_version))

    async def _call(
        self,
        verb: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Obj | None = None,
        content_type: str = "application/json",
        attempts: int | None = None,
    ) -> Obj:
        what = f"{verb} {path}"
        if verb != "GET" and "dryRun" not in (params or {}):
            self.writes += 1
        try:
            async with asyncio.timeout(self._deadline_s) as deadline:
                ends_at = deadline.when() or 0.0
                return await self._attempts_of(what, params, body, content_type, attempts or self._attempts, ends_at)
        except TimeoutError:
            raise Retry(f"{what}: no answer within {self._deadline_s:g} s") from None

    async def _attempts_of(
        self,
        what: str,
        params: Mapping[str, str] | None,
        body: Obj | None,
        content_type: str,
        attempts: int,
        ends_at: float,
    ) -> Obj:
        for attempt in range(1, attempts + 1):
            try:
                return await self._once(what, params, body, content_type)
            except Retry as error:
                pause = error.after_s if error.after_s is not None else 0.2 * 2**attempt * (1 + self._jitter())
                # If the server asks for a longer pause than is left, the caller's queue waits, not
                # this call.
                if attempt == attempts or asyncio.get_running_loop().time() + pause >= ends_at:
                    raise
                log.debug("%s; attempt %d, next in %.1f s", error, attempt, pause)
                await asyncio.sleep(pause)
            except Forbidden:
                # The kubelet rotates a bound token every hour, so read it again, once.
                if attempt > 1 or not await asyncio.to_thread(self._credentials.reload):
                    raise
        raise Retry(f"{what}: gave up after {attempts} attempts")

    async def pod_page(
        self, namespace: str, pod: str, port: int, path: str, headers: Mapping[str, str] | None = None
    ) -> str:
        """Return the answer of a pod to a GET of `path` through the API server's proxy.

        Raises KubeError.
        """
        url = f"{POD.path(namespace, pod)}:{port}/proxy/{path.lstrip('/')}"
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await self._connections.send("GET", url, headers=headers)
        except Unanswered as error:
            raise Retry(f"GET {url}: {error}") from error
        except TimeoutError:
            raise Retry(f"GET {url}: no answer within {self._deadline_s:g} s") from None
        if answer.status != 200:
            raise from_status(answer.status, f"GET {url}", _message(answer), None)
        return answer.text

    async def _once(self, what: str, params: Mapping[str, str] | None, body: Obj | None, content_type: str) -> Obj:
        verb, path = what.split(" ", 1)
        headers = {"Accept": "application/json"}
        content: bytes | None = None
        if body is not None:
            headers["Content-Type"] = content_type
            content = json.dumps(body).encode()  # JSON is valid YAML, so an apply patch may be JSON

        # This is asked before each attempt, and once more when its connection is there: a process
        # that was stopped in between must not go on as if no time had passed.
        def within_s() -> float:
            return math.inf if verb == "GET" else self.write_within_s()

        try:
            if (limit_s := within_s()) <= 0:
                raise NotSent
            async with asyncio.timeout(None if math.isinf(limit_s) else limit_s):
                answer = await self._connections.send(verb, path, params, content, headers, lambda: within_s() > 0)
        except NotSent:
            raise NotLeading(f"{what}: not sent, because another operator may lead") from None
        except Unanswered as error:
            raise Retry(f"{what}: {error}") from error
        if answer.status < 300:
            return _object(what, answer)
        raise from_status(answer.status, what, _message(answer), _retry_after_s(answer), _field_errors(answer))


def _object(what: str, answer: Reply) -> Obj:
    try:
        value: Any = loads(answer.text)
    except ValueError as error:
        raise Retry(f"{what}: the answer is not JSON") from error
    if not isinstance(value, dict):
        raise Retry(f"{what}: the answer is not an object")
    return value


def _message(answer: Reply) -> str:
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return answer.reason
    return str(value.get("message", "")) if isinstance(value, dict) else ""


def _field_errors(answer: Reply) -> list[FieldError]:
    """Return the fields that the answer blames, with the reason of each."""
    try:
        causes = json.loads(answer.body)["details"]["causes"]
        return [(str(c["field"]), str(c.get("message", ""))) for c in causes if c.get("field")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _retry_after_s(answer: Reply) -> float | None:
    try:
        return max(0.0, float(answer.retry_after or ""))
    except ValueError:
        return None
