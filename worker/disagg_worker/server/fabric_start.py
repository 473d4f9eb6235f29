"""Prepares a worker for its second network, before its engine and its transports start.

The environment of UCX, NCCL and gloo is chosen here, because no pod template can know the devices.
What the user has set stays.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from disagg_protocol import fabric_probe, network_interfaces
from disagg_wire.engines import RDMA
from disagg_wire.fabric import ASKED, BYTES, USABLE, told, words_of
from disagg_wire.problems import PROBLEM
from disagg_wire.rails import rail_interfaces

# The ranks of a worker are in one pod, and find each other on the loopback interface.
_OF_RANKS = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")

log = logging.getLogger(__name__)


def prepare(
    interface: str, devices: int, cache_bytes: int, timeout_s: float, environment: MutableMapping[str, str]
) -> dict[str, Any] | None:
    """Wait for the interface of a worker, set its environment, and return its field of `info`.

    A worker that asks for no RDMA devices has no such field. Raises TimeoutError, which names the
    interface.
    """
    if not interface:
        return None
    interfaces = list(rail_interfaces(interface, devices))
    network_interfaces.wait_for_ipv4(interface, timeout_s)
    report = fabric_probe.look(interfaces)
    # Only RDMA: whether UCX may use TCP, which has no key, is not decided here.
    for variable, value in fabric_probe.environment(interfaces, report["ports"], RDMA).items():
        if variable not in _OF_RANKS:
            environment.setdefault(variable, value)
    if not devices:
        return None
    report |= {ASKED: devices, BYTES: cache_bytes, USABLE: [p["name"] for p in fabric_probe.usable(report["ports"])]}
    report["error"] = fabric_probe.register(report["ports"], cache_bytes)
    found = told(report)
    log.info("fabric: %s", words_of(found))
    if PROBLEM in found:
        log.warning("fabric: %s: %s", *found[PROBLEM].values())
    return found
