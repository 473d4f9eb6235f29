"""HTTP connections that are guarded, for the servers of workers and adapters.

uvicorn waits for ever for the head of a request, however long it gets: anybody who reaches the port
could use up memory and descriptors.
"""

from __future__ import annotations

from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from disagg_wire.connection_events import GuardedConnection
from disagg_wire.connection_guard import Port
from disagg_wire.http_framing import framing_problem

# The key of a scope under which the connection's transport is.
TRANSPORT = "disagg.transport"


class _PatientProtocol(GuardedConnection, HttpToolsProtocol):
    """A connection that tells its guard how far a request has come.

    Its parser is strict by itself. Bodies in chunks are refused: no client of a worker sends one,
    and what else stands between the chunks is not shown.
    """

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[TRANSPORT] = self.transport

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._guard.received(len(data))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version().encode()
        problem = framing_problem(version, self.headers, chunked=False)
        if problem:
            raise ValueError(problem)
        super().on_headers_complete()
        self._guard.head_came()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._guard.request_came()


def guarded(app: ASGIApp, connections: Port, shutdown_s: int, **options: Any) -> uvicorn.Config:
    """Return the configuration of a server whose connections are guarded.

    When it ends, requests have `shutdown_s` seconds. An idle connection is kept for longer than
    clients keep it, so that none is used again in the moment in which it is closed.
    """
    members: dict[str, Any] = {"port": connections}
    return uvicorn.Config(
        app,
        http=type("PatientProtocol", (_PatientProtocol,), members),
        # A connection that becomes another protocol's would have no guard any more.
        ws="none",
        access_log=False,
        timeout_keep_alive=round(connections.limits.idle_s),
        timeout_graceful_shutdown=shutdown_s,
        **({"log_level": "warning"} | options),
    )
