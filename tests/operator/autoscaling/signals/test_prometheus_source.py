"""Real Prometheus servers: behind TLS and tokens, with redirects, slow or endless answers.

Their secrets are created, changed and deleted while the operator runs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.certificates import Certificate, certificate
from tests.fakes.kube import FakeKube
from tests.operator.api.resources import watched
from tests.operator.autoscaling.signals.test_prometheus_access import BASIC, CA, TOKEN, access
from tests.ports import free_port

from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.records.state_store import StateStore
from disagg_operator.autoscaling.signals import prometheus_source as source_module
from disagg_operator.autoscaling.signals import prometheus_transport
from disagg_operator.autoscaling.signals.prometheus_access import Access, Unreadable
from disagg_operator.autoscaling.signals.prometheus_query import PrometheusDoor
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller.acceptance import scale_plan
from disagg_operator.kube.errors import Forbidden, KubeError, Retry
from disagg_operator.kube.resources import Resource
from disagg_operator.vocabulary import Obj

KEY = ("ns", "chat")
POD = "chat-decode-0a1b2c3d4e-00000"
SECRET_WORD = "s3cr3t-of-the-test"


class Server:
    """Answers queries as Prometheus does, for clients with the right credentials.

    `seen` holds the headers of all requests.
    """

    def __init__(self) -> None:
        self.authorization: str | None = None
        self.redirect: str | None = None
        self.seen: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(dict(request.headers))
        self.paths.append(request.path)
        if self.redirect is not None:
            raise web.HTTPFound(self.redirect)
        if self.authorization is not None and request.headers.get("Authorization") != self.authorization:
            raise web.HTTPUnauthorized(text=SECRET_WORD)
        metric = {"__name__": "disagg_worker_running_requests", "pod": POD}
        series = {"metric": metric, "values": [[time.time(), "3"]]}
        return web.json_response({"status": "success", "data": {"resultType": "matrix", "result": [series]}})


@contextlib.asynccontextmanager
async def served(handler: Any, tls: Certificate | None = None) -> AsyncIterator[str]:
    """Serve a handler for every path on a free port, and yield the base URL."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner, port = web.AppRunner(app, access_log=None, shutdown_timeout=0.1), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=None if tls is None else tls.server_context()).start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


class Cluster(FakeKube):
    """An API server that records its `reads`, and raises `error` if that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.error: KubeError | None = None
        self.reads: list[tuple[str, str | None, str]] = []

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        self.reads.append((resource.kind, namespace, name))
        if self.error is not None:
            raise self.error
        return await super().get(resource, namespace, name)

    def secret(self, name: str = "prom", namespace: str = "ns", **values: str) -> None:
        data = {k: base64.b64encode(v.encode()).decode() for k, v in values.items()}
        self.put(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": data}
        )

    def config_map(self, name: str, **values: str) -> None:
        self.put(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "ns"}, "data": values}
        )


class Rig:
    def __init__(self, timeout_s: float) -> None:
        self.now_s = 0.0
        self.kube = Cluster()
        door = PrometheusDoor(timeout_s=timeout_s)
        self.source = PrometheusSource(self.kube, door, lambda: time.monotonic() + self.now_s)

    async def pods(self, of: Access) -> list[str]:
        return list(await self.source.read(KEY, of, time.time()))

    async def trouble(self, of: Access) -> tuple[str, str]:
        with pytest.raises(Unreadable) as caught:
            await self.source.read(KEY, of, time.time())
        return caught.value.reason, str(caught.value)


@pytest.fixture
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(getattr(request, "param", 30.0))
    yield made
    await made.source.close()


async def test_a_bearer_token_over_tls_of_a_private_authority_with_a_tenant(rig: Rig, tmp_path: Path) -> None:
    server, tls = Server(), certificate(tmp_path)
    server.authorization = f"Bearer {SECRET_WORD}"
    async with served(server.answer, tls) as url:
        of = access(f"{url}/prometheus/", **TOKEN, **CA, headers=[{"name": "X-Scope-OrgID", "value": "team-a"}])
        rig.kube.secret(token=SECRET_WORD)
        rig.kube.config_map("ca", **{"ca.crt": tls.pem})
        assert await rig.pods(of) == [POD]
        assert (server.paths, server.seen[0]["X-Scope-OrgID"]) == (["/prometheus/api/v1/query"], "team-a")
        assert [minute.requests for minute in await rig.source.history(KEY, of, time.time())] == [3.0]
        assert {namespace for _, namespace, _ in rig.kube.reads} == {"ns"}


async def test_no_request_goes_to_a_server_that_is_not_trusted(rig: Rig, tmp_path: Path) -> None:
    server, tls, other = Server(), certificate(tmp_path), certificate(tmp_path, "other")
    async with served(server.answer, tls) as url:
        assert "not trusted" in (await rig.trouble(access(url)))[1]  # a private authority is not a public one
        rig.kube.secret(token=SECRET_WORD)
        rig.kube.config_map("ca", **{"ca.crt": other.pem})
        of = access(url, **TOKEN, **CA)
        reason, words = await rig.trouble(of)
        assert (reason, "spec.observability.prometheus.tlsConfig.ca" in words) == ("MetricsUnavailable", True)
        assert server.seen == []
        rig.kube.config_map("ca", **{"ca.crt": tls.pem})
        assert await rig.pods(of) == [POD]  # read again at once, because the server was refused


async def test_a_certificate_for_another_name_is_told(rig: Rig, tmp_path: Path) -> None:
    tls = certificate(tmp_path, subject="DNS:thanos.example")
    async with served(Server().answer, tls) as url:
        rig.kube.config_map("ca", **{"ca.crt": tls.pem})
        assert "mismatch" in (await rig.trouble(access(url, **CA)))[1]


async def test_credentials_do_not_follow_a_redirect(rig: Rig) -> None:
    first, second = Server(), Server()
    rig.kube.secret(token=SECRET_WORD)
    async with served(first.answer) as url, served(second.answer) as elsewhere:
        first.redirect = f"{elsewhere}/api/v1/query"
        assert "HTTP 302" in (await rig.trouble(access(url, **TOKEN)))[1]
    assert (len(first.seen), second.seen) == (1, [])


async def test_the_environment_adds_no_proxy_and_no_password(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = Server(), Server()
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET_WORD}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with served(server.answer) as url, served(proxy.answer) as through:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, through)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert await rig.pods(access(url)) == [POD]
    assert (proxy.seen, [h.get("Authorization") for h in server.seen]) == ([], [None])


async def test_a_secret_that_comes_late_changes_and_goes(rig: Rig) -> None:
    server = Server()
    server.authorization = f"Basic {base64.b64encode(b'me:one').decode()}"
    async with served(server.answer) as url:
        of = access(url, **BASIC)
        assert await rig.trouble(of) == (
            "CredentialsUnavailable", "spec.observability.prometheus.basicAuth.username: Secret prom does not exist",
        )  # fmt: skip
        assert server.seen == []
        rig.kube.secret(username="me", word="two")
        reason, words = await rig.trouble(of)
        assert (reason, "HTTP 401" in words, "basicAuth" in words) == ("MetricsUnavailable", True, True)
        rig.kube.secret(username="me", word="one")
        assert await rig.pods(of) == [POD]
        reads = len(rig.kube.reads)
        assert await rig.pods(of) == [POD]
        assert len(rig.kube.reads) == reads  # not read again while it works
        server.authorization = f"Basic {base64.b64encode(b'me:three').decode()}"
        rig.kube.secret(username="me", word="three")
        assert await rig.pods(of) == [POD]  # the server refused the old one: read again within the same look
        rig.kube.remove("Secret", "prom", "ns")
        rig.now_s += source_module.READ_AGAIN_S
        assert (await rig.trouble(of))[0] == "CredentialsUnavailable"


async def test_looks_that_are_refused_at_the_same_time_are_each_told_so(rig: Rig) -> None:
    server = Server()
    server.authorization = f"Bearer {SECRET_WORD}"
    async with served(server.answer) as url:
        of = access(url, **TOKEN)
        rig.kube.secret(token="another")
        asked = [rig.source.read(KEY, of, time.time()) for _ in range(2)]
        found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in found] == [Unreadable, Unreadable]


async def test_only_the_resources_own_namespace_is_read(rig: Rig) -> None:
    rig.kube.secret(namespace="other", token=SECRET_WORD)
    async with served(Server().answer) as url:
        assert "Secret prom does not exist" in (await rig.trouble(access(url, **TOKEN)))[1]
    assert rig.kube.reads == [("Secret", "ns", "prom")]


async def test_an_api_server_that_is_away_costs_nothing_that_is_known(rig: Rig) -> None:
    rig.kube.secret(token=SECRET_WORD)
    async with served(Server().answer) as url:
        of = access(url, **TOKEN)
        rig.kube.error = Retry("GET secrets: 503")
        assert "API server" in (await rig.trouble(of))[1]
        rig.kube.error = None
        assert await rig.pods(of) == [POD]
        rig.now_s += 2 * source_module.READ_AGAIN_S
        rig.kube.error = Retry("GET secrets: 503")
        assert await rig.pods(of) == [POD]
        rig.kube.error = Forbidden("GET secrets: 403")
        assert "may not read Secret prom" in (await rig.trouble(of))[1]


async def test_nothing_is_asked_of_a_link_local_address(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://169.254.169.254/latest", "http://[fe80::1]", "http://[::ffff:169.254.169.254]"):
        assert "link-local" in (await rig.trouble(access(url)))[1]
    # A number is not a host name, and does not get around the check.
    assert await rig.trouble(access("http://2852039166")) == (
        "MetricsUnavailable",
        "the Prometheus server does not answer",
    )
    # A name is checked by the addresses that it resolves to.
    server = Server()
    async with served(server.answer) as url:
        monkeypatch.setattr(prometheus_transport, "refused_address", lambda text: text == "127.0.0.1")
        assert "leads to a link-local" in (await rig.trouble(access(url.replace("127.0.0.1", "localhost"))))[1]
    assert server.seen == []


@pytest.mark.parametrize("rig", [3.0], indirect=True)
async def test_an_answer_that_never_ends_or_is_too_long_costs_one_look_and_holds_up_nobody(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def drip(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    async def flood(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b" " * (1 << 20))

    monkeypatch.setattr(prometheus_transport, "MAX_BYTES", 1 << 16)
    async with served(drip) as slow, served(flood) as long, served(Server().answer) as good:
        dead = access(slow)
        looks = [asyncio.create_task(rig.trouble(dead)) for _ in range(8)]
        assert "more than" in (await rig.trouble(access(long)))[1]
        assert {words for _, words in await asyncio.gather(*looks)} == {"the Prometheus server does not answer"}
        # Another request would take as long, so the server is left alone.
        assert await rig.trouble(dead) == ("MetricsUnavailable", "the Prometheus server does not answer")
        assert [len(asked), await rig.pods(access(good))] == [8, [POD]]  # an edited resource is tried at once
        rig.now_s += source_module.REST_S
        await rig.trouble(dead)
        assert len(asked) == 9


async def test_an_answer_that_would_fill_the_memory_is_not_parsed_and_others_are_read_on(rig: Rig) -> None:
    bomb = b"[" + b"{}," * (5 << 20) + b"{}]"

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.Response(body=bomb, content_type="application/json")
        response.enable_compression()
        return response

    async def deep(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"[" * 100_000 + b"]" * 100_000, content_type="application/json")

    async with served(answer) as hostile, served(deep) as nested, served(Server().answer) as good:
        troubles = await asyncio.gather(*(rig.trouble(access(hostile)) for _ in range(2)))
        assert {words for _, words in troubles} == {"the Prometheus server answers with more values than pods have"}
        assert "not a Prometheus" in (await rig.trouble(access(nested)))[1]
        # The right to read a large answer has been given back each time.
        assert await rig.pods(access(good)) == [POD]
        assert "more values" in (await rig.trouble(access(hostile)))[1]


async def test_nothing_that_a_server_says_and_no_secret_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.authorization = "Bearer other"
    caplog.set_level(logging.DEBUG)
    async with served(server.answer) as url:
        rig.kube.secret(token=SECRET_WORD)
        assert SECRET_WORD not in (await rig.trouble(access(url, **TOKEN)))[1]
    assert SECRET_WORD not in caplog.text


async def test_the_days_before_are_learned_once_the_secret_is_there(rig: Rig, tmp_path: Path) -> None:
    server = Server()
    server.authorization = f"Bearer {SECRET_WORD}"
    async with served(server.answer) as url:
        plan = scale_plan(watched(url, **TOKEN))
        assert plan is not None
        states, entry = StateKeeper(StateStore(FakeKube()), rig.source, time.time), Live("uid")
        entry.trouble = await rig.trouble(access(url, **TOKEN))
        assert await states.ready(KEY, entry, plan)  # there are no metrics, but the bounds hold
        assert (entry.unseeded, server.paths) == (True, [])
        rig.kube.secret(token=SECRET_WORD)
        entry.trouble = None
        assert await states.ready(KEY, entry, plan)
        assert (entry.unseeded, set(server.paths)) == (False, {"/api/v1/query_range"})
        assert len(server.paths) == 3
        assert await states.ready(KEY, entry, plan)
        assert len(server.paths) == 3


async def test_days_that_a_server_can_not_tell_are_asked_for_once(rig: Rig, tmp_path: Path) -> None:
    paths: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        raise web.HTTPUnprocessableEntity

    async with served(answer) as url:
        plan = scale_plan(watched(url))
        assert plan is not None
        states, entry = StateKeeper(StateStore(FakeKube()), rig.source, time.time), Live("uid")
        for _ in range(3):
            assert await states.ready(KEY, entry, plan)
    assert paths == ["/api/v1/query_range"]
