"""The worker's side of its beats: the process that sends them, and the call that asks for them.

It is used on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from disagg_protocol.endpoint import Endpoint
from disagg_protocol.patient_http import TRANSPORT
from disagg_protocol.pulse_board import PulseBoard
from disagg_wire import codes
from disagg_wire.protocol import PULSE_PATH

log = logging.getLogger(__name__)
# How often the loop says that it runs.
_LOOP_INTERVAL_S = 0.1
# The wait after the process has ended by itself before it is started again.
_RESTART_S = 0.5
# A process that has sent nothing for so long is stopped or hangs, if it is still so after some
# looks: after a stop of all processes, this one may be the first to go on.
_STALL_S = 2.0
_STALL_LOOKS = 5
# The time that it has to start.
_START_S = 30.0
# Routers of one deployment, and those that they replace.
_MAX_CONNECTIONS = 256
# How often, and for how long, it is looked whether the head of an answer has been sent.
_HEAD_INTERVAL_S = 0.01
_HEAD_LOOKS = 200


class Pulse:
    """The process that sends the beats of this process, started with `run`."""

    def __init__(self) -> None:
        self.board = PulseBoard()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held: dict[int, asyncio.Transport] = {}
        self._numbers = 0
        self._stalled = 0

    @property
    def pid(self) -> int | None:
        """The process's ID; None while it does not run."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Keep the process running until cancelled."""
        started_s = 0.0
        try:
            while True:
                self.board.loop_runs()
                if self._process is None or self._process.poll() is not None or self._has_stalled(started_s):
                    self._end()
                    if time.monotonic() - started_s >= _RESTART_S:
                        started_s = time.monotonic()
                        self._start()
                await asyncio.sleep(_LOOP_INTERVAL_S)
        finally:
            self._end()

    def _has_stalled(self, started_s: float) -> bool:
        """Return whether the process is there and does nothing."""
        silent_s, runs_s = self.board.reader_silent_s(), time.monotonic() - started_s
        late = silent_s > _STALL_S if silent_s < runs_s else runs_s > _START_S
        self._stalled = self._stalled + 1 if late else 0
        if self._stalled < _STALL_LOOKS:
            return False
        self._stalled = 0
        log.warning("the process that sends beats has sent none for %.1f s: it is replaced", silent_s)
        return True

    def _start(self) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as failure:
            log.warning("no beats are sent: %s", failure)
            return
        with theirs:
            numbers = [str(theirs.fileno()), str(self.board.fd), str(os.getpid())]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "disagg_protocol.pulse_process", *numbers],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), self.board.fd),
                    start_new_session=True,
                )
            except OSError as failure:
                log.warning("no beats are sent: %s", failure)
                ours.close()
                return
        ours.setblocking(False)
        self._control = ours

    def _end(self) -> None:
        """End the process and the connections that it has: routers open others."""
        if self._process is not None and (status := self._process.poll()) is not None:
            log.warning("the process that sends beats has ended with status %d", status)
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None
        for transport in self._held.values():
            transport.abort()
        self._held.clear()

    def hold(self, transport: asyncio.Transport) -> int | None:
        """Hand a connection over, and return its number, or None if that cannot be done."""
        if self._control is None or len(self._held) >= _MAX_CONNECTIONS:
            return None
        number = self._numbers = self._numbers + 1
        try:
            # The other process gets a descriptor of its own: a copy here would not help it.
            socket.send_fds(self._control, [b"+%d" % number], [transport.get_extra_info("socket").fileno()])
        except OSError as failure:
            log.warning("a router gets no beats: %s", failure)
            return None
        self._held[number] = transport
        return number

    def drop(self, number: int) -> None:
        """Close a connection, which its router has left."""
        if self._held.pop(number, None) is None or self._control is None:
            return
        try:
            self._control.send(b"-%d" % number)
        except OSError:
            pass  # The process has ended, and its connections with it.


class _Beats(Response):
    """A response whose body another process sends, until the router leaves."""

    media_type = "application/x-ndjson"

    def __init__(self, pulse: Pulse) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._pulse = pulse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport: Any = scope[TRANSPORT]
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        number = self._pulse.hold(transport) if await _sent(transport) else None
        if number is None:
            transport.abort()
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            if number is not None:
                self._pulse.drop(number)


async def _sent(transport: asyncio.Transport) -> bool:
    """Wait until all that was written is with the kernel, and return whether it is."""
    await asyncio.sleep(0)
    for _ in range(_HEAD_LOOKS):
        if not transport.get_write_buffer_size() or transport.is_closing():
            break
        await asyncio.sleep(_HEAD_INTERVAL_S)
    return not transport.is_closing() and not transport.get_write_buffer_size()


def route(endpoint: Endpoint, pulse: Pulse) -> Route:
    """Return the call that asks for beats."""

    async def beats(request: Request) -> Response:
        if not endpoint.authorized(request):
            error = {"code": codes.UNAUTHORIZED, "message": "the bearer token is missing or wrong", "retryable": False}
            return JSONResponse({"error": error}, 401)
        return _Beats(pulse)

    return Route(PULSE_PATH, beats)
