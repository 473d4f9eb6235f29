"""The HTTP server of the operator.

It serves /livez and /healthz to the kubelet, /metrics to Prometheus, and /decisions/NAMESPACE/NAME
to `disagg explain` of whoever has the right to it (decisions_right.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from aiohttp import web

from disagg_operator.controller.decisions_right import KEY_HEADER, DecisionsRight, Secrets
from disagg_operator.controller.guarded_server import GuardedServer
from disagg_operator.kube.resources import segment
from disagg_operator.settings import OperatorSettings
from disagg_operator.vocabulary import Key

# The records of one resource have up to 16 MiB, and a reader may be slow.
_READERS, _WAIT_S, _READ_S = 2, 10.0, 60.0
_PIECE = 1 << 18


class HealthServer:
    """The HTTP server.

    `sick` returns the problem of this process that a restart may cure, and `useless` also one of
    the cluster, such as missing CRDs; both return None while all is well.
    """

    def __init__(
        self,
        settings: OperatorSettings,
        kube: Secrets,
        clock: Callable[[], float],
        sick: Callable[[], str | None],
        useless: Callable[[], str | None],
        metrics_page: Callable[[str], tuple[bytes, str]],
        decisions: Callable[[Key, float], Iterable[bytes]],
    ) -> None:
        self._host = settings.health_host
        self._port = settings.health_port
        self._sick = sick
        self._useless = useless
        self._metrics_page = metrics_page
        self._records = decisions
        self._right = DecisionsRight(kube, settings.lease_namespace, settings.lease_name, clock)
        self._readers = asyncio.Semaphore(_READERS)
        self._server: GuardedServer | None = None
        self.port = settings.health_port

    async def start(self) -> None:
        self._server = GuardedServer(
            [
                web.get("/livez", self._livez),
                web.get("/healthz", self._healthz),
                web.get("/metrics", self._metrics),
                web.get("/decisions/{namespace}/{name}", self._decisions),
            ]
        )
        self.port = await self._server.start(self._host, self._port)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()

    async def _livez(self, _: web.Request) -> web.Response:
        return _verdict(self._sick())

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(self._useless())

    async def _decisions(self, request: web.Request) -> web.StreamResponse:
        """Return the records from `?since=<epoch seconds>` on as JSON lines, oldest first."""
        if not await self._right.has(request.headers.get(KEY_HEADER, ""), request.remote):
            return web.json_response({"message": f"{KEY_HEADER} is missing or wrong"}, status=401)
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        try:
            since_s = float(request.query.get("since", "0"))
            key = (segment(namespace), segment(name))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._readers.acquire()
        except TimeoutError:
            return web.json_response({"message": "others read now"}, status=503, headers={"Retry-After": "10"})
        try:
            async with asyncio.timeout(_READ_S):
                return await self._send(request, key, since_s)
        finally:
            self._readers.release()

    async def _send(self, request: web.Request, key: Key, since_s: float) -> web.StreamResponse:
        body = await asyncio.to_thread(lambda: b"".join(self._records(key, since_s)))
        answer = web.StreamResponse(headers={"Content-Type": "application/jsonl", "Content-Length": str(len(body))})
        await answer.prepare(request)
        for at in range(0, len(body), _PIECE):
            await answer.write(body[at : at + _PIECE])
        await answer.write_eof()
        return answer

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics_page(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})


def _verdict(problem: str | None) -> web.Response:
    return web.json_response({"status": problem or "ok"}, status=200 if problem is None else 503)
