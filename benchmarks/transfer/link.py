"""A link of a known rate: a veth pair between two network namespaces, which are removed at the
end.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

SENDER, RECEIVER = "10.231.0.1", "10.231.0.2"
# The jumbo frames of a network for KV.
_MTU = 9000


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def link(gigabits_per_s: int | None) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the commands that start a process at the sending and at the receiving end.

    None is a link without a limit. Needs root.
    """
    names = [f"kvbench-{os.getpid()}-{end}" for end in ("send", "receive")]
    ends = list(zip(names, ("kvs0", "kvr0"), (SENDER, RECEIVER), strict=True))
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        peer = ["peer", "name", "kvr0", "netns", names[1]]
        _run("ip", "link", "add", "kvs0", "netns", names[0], "type", "veth", *peer)
        for name, device, address in ends:
            inside = ["ip", "-n", name]
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "link", "set", device, "mtu", str(_MTU))
            _run(*inside, "addr", "add", f"{address}/30", "dev", device)
            _run(*inside, "link", "set", device, "up")
            if gigabits_per_s is not None:
                rate = ["rate", f"{gigabits_per_s}gbit", "burst", "1mb", "latency", "20ms"]
                _run("tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf", *rate)
        yield ["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
