"""HTTP connections that are guarded, for the servers of workers and adapters.

uvicorn waits for ever for the head of a request, however long it gets: anybody who reaches the port
could use up memory and descriptors.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from disagg_wire.connection_guard import ConnectionGuard, Port
from disagg_wire.http_framing import framing_problem


class _PatientProtocol(HttpToolsProtocol):
    """A connection that tells its guard what happens on it.

    Its parser is strict by itself. Bodies in chunks are refused: no client of a worker sends one,
    and what else stands between the chunks is not shown.
    """

    port: Port

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guard = ConnectionGuard(self.port, self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._guard.made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.lost()
        super().connection_lost(exc)

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

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._guard.answered()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._guard.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._guard.resumed()


def patient_protocol(port: Port) -> type[HttpToolsProtocol]:
    """Return the class of the connections of a port."""
    members: dict[str, Any] = {"port": port}
    return type("PatientProtocol", (_PatientProtocol,), members)
