"""The network interfaces and their IPv4 addresses (Linux, read from the kernel)."""

from __future__ import annotations

import fcntl
import socket
import struct
import time

from disagg_wire.environment import WorkerVariable

_SIOCGIFADDR = 0x8915


def ipv4_of(interface: str) -> str | None:
    """Return the IPv4 address of an interface, or None if it does not exist or has none yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def interface_of(host: str) -> str:
    """Return the name of the interface that has the address `host`, or "" if none has."""
    for _, name in socket.if_nameindex():
        if ipv4_of(name) == host:
            return name
    return ""


def wait_for_ipv4(interface: str, timeout_s: float) -> str:
    """Wait for the IPv4 address of an interface and return it.

    Raises TimeoutError, which names the interface.
    """
    deadline_s = time.monotonic() + timeout_s
    while (address := ipv4_of(interface)) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{WorkerVariable.KV_INTERFACE}: {interface} has no IPv4 address after {timeout_s:g} s")
        time.sleep(0.1)
    return address
