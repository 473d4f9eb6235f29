"""Sockets for connections that somebody's resource asks for: none goes to a link-local address."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from disagg_wire.refused_addresses import refused_address, refused_host


class RefusedAddress(OSError):
    """Raised instead of a connection to an address where clouds hand out credentials."""


def guarded_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket for an address, as getaddrinfo gives it. Raises RefusedAddress.

    It is called with the very address of each connection, whatever a name led to before.
    """
    family, kind, protocol, _, place = address
    if refused_address(str(place[0])):
        raise RefusedAddress(errno.EACCES, "a link-local address")
    return socket.socket(family, kind, protocol)


def socket_factory(url: str) -> Callable[[aiohttp.AddrInfoType], socket.socket] | None:
    """Return what makes the sockets for a URL; None for plain ones, if the URL itself has such an
    address: the operator admits it only if the policy of the namespace names it.
    """
    return None if refused_host(urlsplit(url).hostname or "") else guarded_socket
