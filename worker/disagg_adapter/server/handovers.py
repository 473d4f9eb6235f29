"""The hand-overs between adapters: decode's waits for them, and prefill's sends them.

A ticket is used once. What comes a second time, too late, or for another engine is refused before
decode's engine hears of it: an engine that reads blocks which were given to another prompt in the
meantime answers with that prompt's text, and with status 200.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from disagg_adapter.engines.contract import EngineFault
from disagg_adapter.server.handover_message import HandOverMessage, NotSigned, read_message, sign_message
from disagg_protocol.ticket import Ticket, TicketError
from disagg_wire import codes
from disagg_wire.protocol import HANDOVER_PATH, TRANSFER_HEADER

log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 16 << 20
_BODY_S = 10.0
_CONNECT_S = 2.0
# A peer whose kernel is not heard of for so long is cut off: it answers for one that is slow.
_SILENCE_S = 3
_MOST_ANSWER_BYTES = 1 << 20


@dataclass(slots=True)
class Expected:
    """A ticket that has been given out."""

    ticket: Ticket
    arrived: asyncio.Future[HandOverMessage] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The hand-over. It is cancelled when prefill gives the hand-over up."""
    answered: asyncio.Future[EngineFault | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """None when decode's engine has taken the KV, or why it has not."""

    def answer(self, fault: EngineFault | None) -> None:
        if not self.answered.done():
            self.answered.set_result(fault)


class HandOverDoor:
    """The hand-overs that a decode worker expects, and the HTTP call by which they come."""

    def __init__(self, key: bytes, engine: str, max_age_s: float) -> None:
        self._key = key
        self._engine = engine
        self._max_age_s = max_age_s
        self._expected: dict[str, Expected] = {}
        self._reading: set[str] = set()
        self.app = Starlette(routes=[Route(HANDOVER_PATH, self._post, methods=["POST"])])
        # A redirect would lead to the host that the request names, which may be anybody's.
        self.app.router.redirect_slashes = False

    def expect(self, ticket: Ticket) -> Expected:
        expected = Expected(ticket)
        self._expected[ticket.transfer_id] = expected
        return expected

    def forget(self, expected: Expected) -> None:
        """Refuse what still comes for a ticket."""
        self._expected.pop(expected.ticket.transfer_id, None)
        expected.answer(EngineFault(codes.CANCELLED, "the request has ended at decode"))

    async def _post(self, request: Request) -> Response:
        """Answer a hand-over when decode's engine has the KV.

        The body is read only for a ticket that is out, and once at a time: its random ID is known
        to nobody but those who have the ticket, so strangers cost no memory and no work.
        """
        transfer_id = request.headers.get(TRANSFER_HEADER, "")
        if transfer_id not in self._expected or transfer_id in self._reading:
            return _error(400, codes.TICKET_REFUSED, f"{TRANSFER_HEADER}: is unknown, used or expired")
        self._reading.add(transfer_id)
        try:
            body = await _limited(request)
            message = read_message(self._key, json.loads(body))
            expected = self._accept(message)
        except NotSigned as error:
            return _error(401, codes.UNAUTHORIZED, str(error))
        except TicketError as error:
            return _error(400, codes.TICKET_REFUSED, str(error))
        except (ValueError, RecursionError) as error:
            return _error(400, codes.INVALID_REQUEST, f"body: {error}")
        except ClientDisconnect:
            return _error(400, codes.CANCELLED, "the client went away")
        finally:
            self._reading.discard(transfer_id)
        expected.arrived.set_result(message)
        gone = asyncio.create_task(_disconnected(request))
        either: set[asyncio.Future[Any]] = {gone, expected.answered}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not expected.answered.done():
            # Prefill's adapter has given up, because its engine has died or is hung. What its
            # engine still sends is of no use.
            expected.answer(EngineFault(codes.TRANSFER_FAILED, "prefill gave the hand-over up"))
        fault = expected.answered.result()
        if fault is None:
            return JSONResponse({"accepted": True})
        return _error(409, fault.code, str(fault), retryable=fault.retryable)

    def _accept(self, message: HandOverMessage) -> Expected:
        """Take the ticket out of those that are expected. Raises TicketError."""
        if message.engine != self._engine:
            raise TicketError(f"engine: {message.engine} hands over to {self._engine}")
        if message.age_s > self._max_age_s:
            raise TicketError(f"age_s: {message.age_s:.1f} s old; prefill may have given its blocks to others")
        expected = self._expected.get(message.ticket.transfer_id)
        if expected is None or expected.ticket != message.ticket or expected.arrived.done():
            raise TicketError("ticket: is unknown, used or expired")
        del self._expected[message.ticket.transfer_id]
        return expected


async def _limited(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > _MAX_BODY_BYTES:
                    raise TicketError(f"body: over {_MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise TicketError(f"body: did not come within {_BODY_S:g} s") from None
    return bytes(body)


async def _short(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body of an answer. Raises ValueError for one that is long."""
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > _MOST_ANSWER_BYTES:
            raise ValueError(f"the answer has over {_MOST_ANSWER_BYTES} bytes")
    return bytes(body)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, code: str, message: str, *, retryable: bool = True) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "retryable": retryable}}, status)


def _watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket that ends when its peer's kernel is silent, whether something waits for it or
    not.
    """
    sock = socket.socket(*address[:3])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 1),
        (socket.TCP_KEEPINTVL, 1),
        (socket.TCP_USER_TIMEOUT, 1000 * _SILENCE_S),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


class HandOverSender:
    """The client with which prefill's adapter hands over."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._session: aiohttp.ClientSession | None = None  # created within a running loop

    async def send(self, message: HandOverMessage, timeout_s: float) -> float:
        """Hand over, wait until decode's engine has the KV, and return the seconds that it took.

        It is sent once: a second copy could be used after the lease. Raises EngineFault.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=False, connector=aiohttp.TCPConnector(limit=0, socket_factory=_watched_socket)
            )
        ticket = message.ticket
        host = f"[{ticket.host}]" if ":" in ticket.host else ticket.host
        started_s = time.monotonic()
        try:
            async with self._session.post(
                f"http://{host}:{ticket.port}{HANDOVER_PATH}",
                json=sign_message(self._key, message),
                headers={TRANSFER_HEADER: ticket.transfer_id},
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
                allow_redirects=False,
            ) as answer:
                content = json.loads(await _short(answer))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EngineFault(
                codes.TRANSFER_FAILED, f"hand-over to {ticket.host}: {str(error) or type(error).__name__}"
            ) from None
        if answer.status == 200:
            return time.monotonic() - started_s
        told = content.get("error", {}) if isinstance(content, dict) else {}
        raise EngineFault(
            codes.TRANSFER_FAILED, f"decode refused the hand-over: {told.get('message', f'HTTP {answer.status}')}"
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
