"""Two network namespaces with a link for KV, which the test reaches by links of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.transfer.link import link


@contextmanager
def namespaces() -> Iterator[list[tuple[list[str], str]]]:
    """Yield, for prefill and decode, the command that enters the network namespace and the address
    at which the test reaches it. Their KV goes over a link between the two.
    """
    with link(None) as commands:
        ends = []
        for i, command in enumerate(commands):
            outside, net = f"kvt{os.getpid()}-{i}", f"10.232.{i}."
            run = ["ip", "-n", command[-1]]
            for step in (
                ["ip", "link", "add", outside, "type", "veth", "peer", "name", "ctl", "netns", command[-1]],
                ["ip", "addr", "add", f"{net}1/30", "dev", outside],
                ["ip", "link", "set", outside, "up"],
                [*run, "addr", "add", f"{net}2/30", "dev", "ctl"],
                [*run, "link", "set", "ctl", "up"],
            ):
                subprocess.run(step, check=True, capture_output=True)
            ends.append((list(command), f"{net}2"))
        yield ends  # The devices go with the namespaces.
