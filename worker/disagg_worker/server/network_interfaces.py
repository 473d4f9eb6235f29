"""Which network interface carries which IPv4 address (Linux, read from the kernel)."""

from __future__ import annotations

import fcntl
import socket
import struct
import time

from disagg_wire.environment import WorkerVariable

_SIOCGIFADDR = 0x8915


def ipv4_of(interface: str) -> str | None:
    """The interface's IPv4 address, None when there is no such interface or it has none yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def interface_of(host: str) -> str:
    """The name of the interface that carries `host`, "" when none does."""
    for _, name in socket.if_nameindex():
        if ipv4_of(name) == host:
            return name
    return ""


def wait_for_ipv4(interface: str, timeout_s: float) -> str:
    """The interface's address as soon as it has one. Raises TimeoutError naming the interface."""
    deadline_s = time.monotonic() + timeout_s
    while (address := ipv4_of(interface)) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{WorkerVariable.KV_INTERFACE}: {interface} has no IPv4 address after {timeout_s:g} s")
        time.sleep(0.1)
    return address
