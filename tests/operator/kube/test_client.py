"""Tests of the client of the API server, over real sockets: the result of each kind of answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from tests.connections import serving

from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.credentials import Credentials, NoCredentials, load
from disagg_operator.kube.errors import Conflict, Forbidden, Gone, Invalid, KubeError, NotLeading, Retry, from_status
from disagg_operator.kube.resources import DEPLOYMENT, NETWORK_ATTACHMENT, NODE, POD, Resource, resource_of

Answer = Callable[[web.Request], Awaitable[web.Response]]
POD_OBJ = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n"}, "spec": {"future": {"x": 1}}}


class Server:
    """A server that returns the answers queued by a test and records the requests it received."""

    def __init__(self) -> None:
        self.answers: list[web.Response | Answer] = []
        self.seen: list[tuple[str, str, dict[str, str], str, bytes]] = []
        self.tokens: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind = request.headers.get("Content-Type", "")
        self.seen.append((request.method, request.path, dict(request.query), kind, await request.read()))
        self.tokens.append(request.headers.get("Authorization", ""))
        answer = self.answers.pop(0)
        return answer if isinstance(answer, web.Response) else await answer(request)

    def add(self, status: int = 200, body: Any = None, **headers: str) -> None:
        self.answers.append(web.Response(status=status, text=json.dumps(body or {}), headers=headers))


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    found = Server()
    # Some answers never come.
    async with serving(web.route("*", "/{tail:.*}", found.handle), shutdown_timeout=0.5) as port:
        yield found, f"http://127.0.0.1:{port}"


@pytest.fixture
async def kube(server: tuple[Server, str]) -> AsyncIterator[HttpKube]:
    door = HttpKube(Credentials(server[1]), deadline_s=3.0)
    yield door
    await door.close()


async def test_an_operator_that_does_not_lead_sends_no_write_but_reads(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    kube.write_within_s = lambda: 0.0
    for write in (kube.apply(POD_OBJ), kube.merge(POD, "n", "a", {}), kube.create_event(POD_OBJ), kube.create(POD_OBJ)):
        with pytest.raises(NotLeading, match="not sent"):
            await write
    server[0].add(body=POD_OBJ)
    assert await kube.get(POD, "n", "a") == POD_OBJ
    assert [method for method, *_ in server[0].seen] == ["GET"]


async def test_a_write_is_not_tried_again_once_another_operator_may_lead(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    server[0].add(status=503)
    left = iter([1.0, 1.0, 0.0])
    kube.write_within_s = lambda: next(left)
    with pytest.raises(NotLeading):
        await kube.apply(POD_OBJ)
    assert len(server[0].seen) == 1


@pytest.mark.parametrize("reused", [False, True])
async def test_a_process_that_stood_still_while_it_connected_sends_nothing_of_a_write(
    kube: HttpKube, server: tuple[Server, str], reused: bool
) -> None:
    if reused:
        server[0].add()
        await kube.version()
    left = iter([1.0, 0.0])
    kube.write_within_s = lambda: next(left)
    with pytest.raises(NotLeading, match="/pods/a: not sent"):
        await kube.apply(POD_OBJ)
    assert next(left, None) is None, "it was asked when the request could have been sent"
    assert len(server[0].seen) == int(reused)
    kube.write_within_s = lambda: 1.0
    server[0].add(body=POD_OBJ)
    assert await kube.apply(POD_OBJ) == POD_OBJ
    assert len(server[0].seen) == 1 + int(reused), "the next one has a whole connection"


async def test_a_write_that_is_not_answered_in_time_is_given_up(kube: HttpKube, server: tuple[Server, str]) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    server[0].answers.append(hang)
    kube.write_within_s = lambda: 0.05
    with pytest.raises(Retry):
        await kube.apply(POD_OBJ)


async def test_an_object_is_created_and_replaced_as_it_was_read(kube: HttpKube, server: tuple[Server, str]) -> None:
    server[0].add(status=201, body=POD_OBJ)
    server[0].add(status=409)
    assert await kube.create(POD_OBJ) == POD_OBJ
    with pytest.raises(Conflict):
        await kube.replace(POD_OBJ)
    assert [(method, path) for method, path, *_ in server[0].seen] == [
        ("POST", "/api/v1/namespaces/n/pods"),
        ("PUT", "/api/v1/namespaces/n/pods/a"),
    ]


async def test_apply_is_one_forced_patch_of_the_whole_object(kube: HttpKube, server: tuple[Server, str]) -> None:
    server[0].add(body=POD_OBJ)
    assert await kube.apply(POD_OBJ) == POD_OBJ
    method, path, query, kind, body = server[0].seen[0]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/n/pods/a")
    assert query == {"fieldManager": "disagg-operator", "force": "true", "fieldValidation": "Strict"}
    assert kind == "application/apply-patch+yaml"
    assert json.loads(body) == POD_OBJ
    assert kube.writes == 1


async def test_a_status_goes_without_the_parts_that_an_earlier_crd_does_not_know(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    words = "failed to create typed patch object (n/a; v1, Kind=Pod): .status.{}: field not declared in schema"
    server[0].add(500, {"message": words.format("rollout")})
    server[0].add(body=POD_OBJ)
    await kube.apply_status({**POD_OBJ, "status": {"rollout": {"steps": 1}, "phase": "Running"}})
    bodies = [json.loads(body) for *_, body in server[0].seen]
    assert [body["status"] for body in bodies] == [{"rollout": {"steps": 1}, "phase": "Running"}, {"phase": "Running"}]
    server[0].add(500, {"message": words.format("phase").replace("field not declared in schema", "expected map")})
    with pytest.raises(Invalid):
        await kube.apply_status({**POD_OBJ, "status": {"phase": "Running"}})


async def test_a_list_follows_its_pages_and_starts_over_when_the_token_expires(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    item = {"metadata": {"name": "a"}}
    server[0].add(body={"metadata": {"continue": "t"}, "items": [item]})
    server[0].add(410)
    server[0].add(body={"metadata": {"continue": "t"}, "items": [item]})
    server[0].add(body={"metadata": {}, "items": [{"metadata": {"name": "b"}}]})
    found = await kube.list(POD, "n", "x=y")
    assert [(o["kind"], o["metadata"]["name"]) for o in found] == [("Pod", "a"), ("Pod", "b")]
    assert server[0].seen[-1][2] == {"limit": "500", "labelSelector": "x=y", "continue": "t"}


async def test_an_absent_optional_api_lists_as_nothing_and_a_required_one_does_not(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    server[0].add(404)
    assert await kube.list(NETWORK_ATTACHMENT, "n") == []
    server[0].add(404)
    with pytest.raises(KubeError):
        await kube.list(POD, "n")


async def test_an_overloaded_server_is_asked_again_after_the_time_it_names(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    server[0].add(429, **{"Retry-After": "0.01"})
    server[0].add(503, **{"Retry-After": "0"})
    server[0].add(body=POD_OBJ)
    assert await kube.get(POD, "n", "a") == POD_OBJ
    assert len(server[0].seen) == 3


async def test_a_pause_longer_than_the_deadline_is_left_to_the_caller(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    server[0].add(429, **{"Retry-After": "60"})
    with pytest.raises(Retry) as error:
        await kube.get(POD, "n", "a")
    assert error.value.after_s == 60.0


async def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(server: tuple[Server, str]) -> None:
    import asyncio

    released = asyncio.Event()

    async def never(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    server[0].answers += [never] * 8
    door = HttpKube(Credentials(server[1]), deadline_s=0.2)
    with pytest.raises(Retry):
        await door.get(POD, "n", "a")
    released.set()
    await door.close()


async def test_a_dead_server_is_a_retry(server: tuple[Server, str]) -> None:
    door = HttpKube(Credentials("http://127.0.0.1:1"), deadline_s=1.0, attempts=2)
    with pytest.raises(Retry):
        await door.get(POD, "n", "a")
    await door.close()


async def test_an_answer_that_breaks_off_and_a_redirection_are_not_taken_for_answers(
    kube: HttpKube, server: tuple[Server, str]
) -> None:
    async def breaks_off(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        request.transport.close()
        return web.Response()

    server[0].answers.append(breaks_off)
    server[0].add(body=POD_OBJ)
    assert await kube.get(POD, "n", "a") == POD_OBJ
    # Credentials are sent to no other address.
    server[0].add(302, Location=f"{server[1]}/elsewhere")
    with pytest.raises(KubeError, match="302"):
        await kube.get(POD, "n", "a")
    assert [path for _, path, *_ in server[0].seen] == ["/api/v1/namespaces/n/pods/a"] * 3


async def test_the_address_of_an_api_server_may_have_a_path_and_selectors_are_quoted(
    server: tuple[Server, str],
) -> None:
    door = HttpKube(Credentials(f"{server[1]}/k8s/clusters/c-1/"))
    server[0].add(body={"items": []})
    assert await door.list(POD, "n", labels="a in (b, c&d)") == []
    _, path, query, _, _ = server[0].seen[0]
    assert path == "/k8s/clusters/c-1/api/v1/namespaces/n/pods"
    assert query["labelSelector"] == "a in (b, c&d)"
    await door.close()


async def test_a_rotated_token_is_read_again_once(server: tuple[Server, str]) -> None:
    tokens = iter(["old", "new", "new"])
    door = HttpKube(Credentials(server[1], read_token=lambda: next(tokens)))
    server[0].add(401)
    server[0].add(body=POD_OBJ)
    assert await door.get(POD, "n", "a") == POD_OBJ
    assert server[0].tokens == ["Bearer old", "Bearer new"]
    server[0].add(403)
    with pytest.raises(Forbidden):
        await door.get(POD, "n", "a")
    await door.close()


async def test_a_delete_names_exactly_the_object_that_was_seen(kube: HttpKube, server: tuple[Server, str]) -> None:
    seen = {**POD_OBJ, "metadata": {**POD_OBJ["metadata"], "uid": "u", "resourceVersion": "7"}}  # type: ignore[dict-item]
    server[0].add()
    await kube.delete(seen)
    assert json.loads(server[0].seen[0][4])["preconditions"] == {"uid": "u", "resourceVersion": "7"}
    server[0].add(404)
    await kube.delete(seen)
    server[0].add(409)
    with pytest.raises(Conflict):
        await kube.delete(seen)


async def test_an_event_is_tried_once_only(kube: HttpKube, server: tuple[Server, str]) -> None:
    server[0].add(503)
    with pytest.raises(Retry):
        await kube.create_event({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"}})
    assert len(server[0].seen) == 1


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (400, "", Invalid), (422, "", Invalid), (401, "", Forbidden), (403, "", Forbidden), (409, "", Conflict),
        (410, "", Gone), (429, "", Retry), (500, "", Retry), (503, "", Retry),
        (500, "failed to create typed patch object (x): .spec.a: field not declared in schema", Invalid),
    ],
)  # fmt: skip
def test_errors_are_named_by_what_to_do(code: int, message: str, kind: type[KubeError]) -> None:
    assert type(from_status(code, "PATCH /x", message, None)) is kind


@pytest.mark.parametrize("name", ["../secrets/x", "a/b", "a?b", "", "a\n", "a%2fb", ".."])
def test_a_name_can_not_leave_its_place_in_the_path(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        POD.path("n", name)


@pytest.mark.parametrize(
    ("resource", "namespace", "path"),
    [
        (POD, "n", "/api/v1/namespaces/n/pods/a"),
        (DEPLOYMENT, "n", "/apis/apps/v1/namespaces/n/deployments/a"),
        (NODE, None, "/api/v1/nodes/a"),
    ],
)
def test_paths(resource: Resource, namespace: str | None, path: str) -> None:
    assert resource.path(namespace, "a") == path


def test_a_kind_that_the_operator_does_not_deal_in_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        resource_of({"apiVersion": "v1", "kind": "Namespace"})


def test_credentials_of_the_pod_and_of_a_kubeconfig(tmp_path: Any) -> None:
    (tmp_path / "token").write_text("secret\n")
    inside = load({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert inside.server == "https://[fd00::1]:6443"
    assert inside.headers() == {"Authorization": "Bearer secret"}
    (tmp_path / "token").write_text("newer")
    assert inside.reload()
    assert not inside.reload()
    with pytest.raises(NoCredentials):
        load({"KUBECONFIG": str(tmp_path / "missing")}, tmp_path)
