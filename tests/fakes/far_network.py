"""A network to somewhere else that can be cut: a namespace of its own. It needs root."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

needs_network = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root, and ip"
)
_HOST = "10.233.9.2"


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _server_within(name: str) -> socket.socket:
    """Return a server whose address is in the namespace, by this thread's short visit there."""
    libc = ctypes.CDLL(None)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        libc.setns(there, 0)
        return socket.create_server((_HOST, 0))
    finally:
        libc.setns(here, 0)
        os.close(here)
        os.close(there)


@contextmanager
def far_server() -> Iterator[tuple[socket.socket, Callable[[], None]]]:
    """Yield a server, and what cuts the network to it, of which nobody is told."""
    name = f"disagg-far-{os.getpid()}"
    device = f"far{os.getpid()}"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", device, "type", "veth", "peer", "name", "inner", "netns", name)
        _run("ip", "addr", "add", "10.233.9.1/30", "dev", device)
        _run("ip", "link", "set", device, "up")
        _run("ip", "-n", name, "addr", "add", f"{_HOST}/30", "dev", "inner")
        _run("ip", "-n", name, "link", "set", "inner", "up")
        with _server_within(name) as server:
            yield server, lambda: _run("ip", "-n", name, "link", "set", "inner", "down")
    finally:
        _run("ip", "netns", "del", name)
        subprocess.run(["ip", "link", "del", device], check=False, capture_output=True)
