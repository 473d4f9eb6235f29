"""The life of a process that serves the protocol: it listens, and on SIGTERM it drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import uvicorn
import uvloop
from starlette.routing import Route

from disagg_protocol import pulse
from disagg_protocol.app import create_app
from disagg_protocol.endpoint import Endpoint
from disagg_protocol.patient_http import guarded
from disagg_protocol.pulse import Pulse
from disagg_wire import drain_report, log_lines, termination_log
from disagg_wire.connection_guard import ConnectionLimits, Port, raise_file_limit
from disagg_wire.environment import SettingsError, variable_of

log = logging.getLogger(__name__)
# How often a process that has nothing to do looks whether a router still needs it.
_NEED_INTERVAL_S = 0.1
_MAX_CONNECTIONS = 4096


class _Settings(Protocol):
    @property
    def log_level(self) -> str: ...


_SettingsT = TypeVar("_SettingsT", bound=_Settings)


def run_program(
    name: str,
    settings_in: Callable[[Mapping[str, str]], _SettingsT],
    serve: Callable[[_SettingsT], Coroutine[Any, Any, int]],
) -> NoReturn:
    """Serve with the settings in the environment until the end, and exit with the status that
    `serve` returns, or with a message about the settings or the address.
    """
    try:
        settings = settings_in(os.environ)
        log_lines.configure(settings.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(serve(settings)))
    except SettingsError as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        sys.exit(f"{name}: {variable_of('host')}, {variable_of('port')}: {error}")


class QuietServer(uvicorn.Server):
    """uvicorn's server without its signal handling, which would cut running streams.

    `on_shutdown` is called before it waits for the connections to end.
    """

    on_shutdown: Callable[[], object] = staticmethod(lambda: None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.on_shutdown()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Process:
    """The HTTP server of a process, from its start to the end of its drain.

    It must be made on the event loop.
    """

    def __init__(
        self, endpoint: Endpoint, host: str, port: int, drain_timeout_s: float, more: Sequence[Route] = ()
    ) -> None:
        self._endpoint = endpoint
        self._address = (host, port)
        self._drain_timeout_s = drain_timeout_s
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.pulse = Pulse()
        limits = ConnectionLimits(raise_file_limit(_MAX_CONNECTIONS))
        app = create_app(endpoint, [*more, pulse.route(endpoint, self.pulse)])
        config = guarded(app, Port(limits), max(1, round(self._grace_s)))
        self._server = QuietServer(config)

    @property
    def _grace_s(self) -> float:
        """The part of the drain timeout that is kept for breaking off requests."""
        return min(5.0, self._drain_timeout_s / 10)

    def stop_soon(self) -> None:
        """Stop without draining. Any thread may call this."""
        self._loop.call_soon_threadsafe(setattr, self._server, "should_exit", True)

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop_soon`. Raises OSError if the port is taken."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        with socket.create_server(self._address, backlog=2048) as listening:
            log.info("HTTP on %s:%d", self._address[0], listening.getsockname()[1])
            beating = self._loop.create_task(self.pulse.run())
            self._server.on_shutdown = beating.cancel
            try:
                await self._server.serve(sockets=[listening])
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)

    def _on_signal(self) -> None:
        if not self._endpoint.draining:
            self._tasks.add(self._loop.create_task(self._drain()))

    async def _drain(self) -> None:
        """Refuse new requests, let the running ones finish, then stop the server.

        Requests of routers that have no other worker are taken as long as they have time to finish.
        Requests that still run near the deadline end with the error `draining`.
        """
        endpoint = self._endpoint
        timeout_s = endpoint.end(self._drain_timeout_s)
        log.info("draining: %d requests run", endpoint.active)
        cut = 0
        telling = self._loop.create_task(termination_log.keep(lambda: drain_report.message_of(endpoint.active)))
        in_time = await self._finish(time.monotonic() + timeout_s - self._grace_s)
        telling.cancel()
        if not in_time:
            cut = endpoint.active
            log.warning("drain timed out after %g s, %d requests are cut off", timeout_s, cut)
            await endpoint.break_off(self._grace_s)
        termination_log.leave(drain_report.message_of(cut))
        self._server.should_exit = True

    async def _finish(self, until_s: float) -> bool:
        """Wait until no request runs and no router needs this worker, and return whether that was
        in time.
        """
        endpoint = self._endpoint
        while await endpoint.wait_idle(max(0.0, until_s - time.monotonic())):
            if (left_s := endpoint.needed_for_s) <= 0:
                endpoint.departure.close()
                return True
            await asyncio.sleep(min(left_s, _NEED_INTERVAL_S))
        endpoint.departure.close()
        return False
