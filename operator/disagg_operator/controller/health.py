"""The HTTP server of the operator.

It serves /livez and /healthz to the kubelet, /metrics to Prometheus, and /decisions/NAMESPACE/NAME
to `disagg explain`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from aiohttp import web

from disagg_operator.controller.guarded_server import GuardedServer
from disagg_operator.kube.resources import segment
from disagg_operator.vocabulary import Key


class HealthServer:
    """The HTTP server.

    `sick` returns the problem of this process that a restart may cure, and `useless` also one of
    the cluster, such as missing CRDs; both return None while all is well.
    """

    def __init__(
        self,
        host: str,
        port: int,
        sick: Callable[[], str | None],
        useless: Callable[[], str | None],
        metrics_page: Callable[[str], tuple[bytes, str]],
        decisions: Callable[[Key, float], Iterable[bytes]],
    ) -> None:
        self._host = host
        self._port = port
        self._sick = sick
        self._useless = useless
        self._metrics_page = metrics_page
        self._records = decisions
        self._server: GuardedServer | None = None
        self.port = port

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

    async def _decisions(self, request: web.Request) -> web.Response:
        """Return the records from `?since=<epoch seconds>` on as JSON lines, oldest first."""
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        try:
            since_s = float(request.query.get("since", "0"))
            key = (segment(namespace), segment(name))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        body = await asyncio.to_thread(lambda: b"".join(self._records(key, since_s)))
        return web.Response(body=body, content_type="application/jsonl")

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics_page(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})


def _verdict(problem: str | None) -> web.Response:
    return web.json_response({"status": problem or "ok"}, status=200 if problem is None else 503)
