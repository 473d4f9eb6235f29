"""A collector that takes every message of OTLP over HTTP, and does nothing with it."""

from __future__ import annotations

import sys

from aiohttp import web


async def _take(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(content_type="application/x-protobuf")


def main() -> None:
    app = web.Application(client_max_size=16 << 20)
    app.router.add_post("/v1/traces", _take)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
