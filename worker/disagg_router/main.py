"""The router process.

On SIGTERM it turns not ready, finishes its streams and exits with status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator

import uvicorn
import uvloop

from disagg_router import settings
from disagg_router.openai.answer_headers import AnswerHeaders
from disagg_router.openai.app import create_app
from disagg_router.openai.connections import ApiPort, connection_class
from disagg_router.router import Router
from disagg_wire import drain_report, log_lines, termination_log
from disagg_wire.connection_guard import ConnectionLimits, raise_file_limit
from disagg_wire.environment import SettingsError

log = logging.getLogger("disagg_router")
# Longer than proxies and clients keep idle connections, so that none is reused in the moment in
# which it is closed.
_IDLE_S = 75


_CLOSE = (b"connection", b"close")
# Requests that come in the time of grace make it longer, up to so many times as long.
_MOST_GRACES = 6


class RouterServer(uvicorn.Server):
    """A uvicorn server without signal handling, which would cut off running streams."""

    def __init__(self, config: uvicorn.Config, port: ApiPort) -> None:
        super().__init__(config)
        self.port = port

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def close_connections(self) -> None:
        """Close each connection with its next answer, so that its client finds another router.

        One whose answer has begun is closed with the answer after that: its client does not know
        yet, and may be about to ask again.
        """
        if not self.config.loaded:
            self.config.load()
        for headers in (self.config.encoded_headers, self.server_state.default_headers):
            headers.append(_CLOSE)


async def _drain(router: Router, server: RouterServer, grace_s: float) -> None:
    log.info("draining: %d requests run", router.active)
    loop, cut = asyncio.get_running_loop(), 0
    telling = loop.create_task(termination_log.keep(lambda: drain_report.message_of(router.active)))
    until_s = loop.time() + grace_s + router.settings.drain_s
    server.close_connections()
    # The router is not ready from now on, but clients that have not noticed yet are still served.
    await server.port.until_unasked(grace_s, min(_MOST_GRACES * grace_s, until_s - loop.time()))
    deserted = loop.create_task(router.answer_the_deserted())
    try:
        async with asyncio.timeout_at(until_s):
            await router.idle.wait()
    except TimeoutError:
        await router.answer_the_held()
        cut = router.active
    if cut:
        log.warning("drain timed out, %d requests are cut off", cut)
    deserted.cancel()
    telling.cancel()
    termination_log.leave(drain_report.message_of(cut))
    router.queue.hold.demand.end()
    server.should_exit = True


def server_of(router: Router) -> RouterServer:
    """Return the HTTP server of a router, not started."""
    most = raise_file_limit(router.settings.max_connections)
    limits = ConnectionLimits(most, idle_s=_IDLE_S, stall_s=router.settings.client_stall_timeout_s)
    port = ApiPort(limits, router.metrics.stalled.inc)
    config = uvicorn.Config(
        AnswerHeaders(create_app(router)),
        host=router.settings.host,
        port=router.settings.port,
        log_level="warning",
        access_log=False,
        http=connection_class(port),
        ws="none",
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=5,
    )
    return RouterServer(config, port)


async def serve(s: settings.Settings) -> int:
    """Run until SIGTERM, and return the exit status."""
    router = Router(s)
    server = server_of(router)
    loop = asyncio.get_running_loop()
    drains: set[asyncio.Task[None]] = set()

    def on_signal(grace_s: float) -> None:
        if not router.draining:
            router.end()
            drains.add(loop.create_task(_drain(router, server, grace_s)))

    loop.add_signal_handler(signal.SIGTERM, on_signal, s.grace_s)
    loop.add_signal_handler(signal.SIGINT, on_signal, 0.0)
    background = loop.create_task(router.run())
    serving = loop.create_task(server.serve())
    done, _ = await asyncio.wait({background, serving}, return_when=asyncio.FIRST_COMPLETED)
    failed = background in done
    if failed:
        log.error("background work failed", exc_info=background.exception())
        server.should_exit = True
    await serving
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    await router.close()
    return 1 if failed else 0


def main() -> None:
    try:
        s = settings.from_environment(os.environ)
        log_lines.configure(s.log_level)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(serve(s)))
    except SettingsError as error:
        sys.exit(f"disagg_router: {error}")
