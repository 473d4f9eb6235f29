"""Ports for servers that are told where to listen before they do so.

The kernel gives a port that was bound and closed again to the next connection that anybody opens,
perhaps before the server has started. These ports are none that it gives away by itself, and no
other test process has them.
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

# Below the ports of Kubernetes' node port Services.
_FIRST, _END, _BLOCK = 15_000, 30_000, 100
_given: Iterator[int] | None = None


def _given_away() -> range:
    """Return the ports that the kernel gives to connections and to servers that name none."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(first), int(last) + 1)


def _blocks() -> Iterator[range]:
    """Yield blocks of ports that no other process of this network namespace has."""
    for first in range(_FIRST, _END, _BLOCK):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0disagg-test-ports-{first}")
        except OSError as failure:
            claim.close()
            if failure.errno != errno.EADDRINUSE:
                raise
            continue
        claim.detach()  # It stays open, and its name taken, until this process ends.
        yield range(first, first + _BLOCK)
    raise RuntimeError(f"no port is free between {_FIRST} and {_END}")


def _ports() -> Iterator[int]:
    given_away = _given_away()
    for port in itertools.chain.from_iterable(_blocks()):
        if port in given_away:
            continue
        try:
            with socket.create_server(("", port)):
                pass
        except OSError:
            continue
        yield port


def free_port() -> int:
    """Return a port on which nobody listens, at any address, and that this process had not yet."""
    global _given
    if _given is None:
        _given = _ports()
    return next(_given)
