"""The operator's own HTTP: /healthz for the kubelet, /metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web


class HealthServer:
    """`sick` gives None while all is well, else what isn't."""

    def __init__(self, host: str, port: int, sick: Callable[[], str | None], metrics_text: Callable[[], bytes]) -> None:
        self._host = host
        self._port = port
        self._sick = sick
        self._metrics_text = metrics_text
        self._runner: web.AppRunner | None = None
        self.port = port

    async def start(self) -> None:
        app = web.Application(client_max_size=1024)
        app.add_routes([web.get("/healthz", self._healthz), web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        addresses = self._runner.addresses
        self.port = int(addresses[0][1]) if addresses else self._port

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        sick = self._sick()
        return web.json_response({"status": sick or "ok"}, status=200 if sick is None else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics_text(), headers={"Content-Type": "text/plain; version=0.0.4"})
