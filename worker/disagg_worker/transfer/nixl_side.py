"""The two halves of transfers by NIXL, if it is installed and there is a use for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from disagg_wire.engines import AUTO, RDMA, SHM, TCP
from disagg_wire.environment import WorkerVariable
from disagg_wire.roles import DECODE, PREFILL, Role
from disagg_worker.transfer import nixl_agent
from disagg_worker.transfer.landing import Landings
from disagg_worker.transfer.nixl_agent import Agent, NixlAgent
from disagg_worker.transfer.nixl_peers import Writer
from disagg_worker.transfer.reach import Facts, Place, Reach, common, reach_of
from disagg_worker.values.kv_blocks import KvCache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NixlSide:
    """Both halves, of which a worker uses those of its role."""

    reach: Reach
    """What `kv.transports` of the worker says."""
    best: str
    """The transport that it uses with a peer which has all of them, too."""
    place: Place
    devices: Sequence[str]
    """The RDMA devices with their ports."""
    writer: Writer
    landings: Landings


def needs_host_region(wanted: str, over_tcp: bool, devices: Sequence[str]) -> bool:
    """Return whether a cache that is divided among ranks is to have a copy in host memory, into
    which others write.

    It is as large as the cache, so nobody gets it for what the TCP of this project does as well.
    """
    asked = wanted in (RDMA, SHM) or over_tcp or (wanted == AUTO and bool(devices))
    return asked and nixl_agent.is_installed()


def nixl_side(
    cache: KvCache, wanted: str, over_tcp: bool, interface: str, devices: Sequence[str], role: Role
) -> NixlSide | None:
    """Return what is there for a cache, or None if KV goes over TCP anyway.

    `wanted` is the transport that the spec asks for, and `devices` are the RDMA devices that can be
    used, with their ports. The memory is registered here, which a limit
    of locked memory may refuse; that ends the use of NIXL, and not the worker.
    """
    region = cache.region
    if region is None:
        if wanted not in (AUTO, TCP):
            words = "%s=%s: the ranks' parts of the cache have no memory in common, so that KV goes over TCP"
            log.warning(words, WorkerVariable.TRANSPORT, wanted)
        return None
    place = nixl_agent.place()
    on_gpu = region.device is not None
    facts = Facts(nixl_agent.is_installed(), on_gpu, devices, place.neighbourhood, os.environ.get("UCX_TLS", ""))
    if not facts.library and wanted not in (AUTO, TCP):
        log.warning("%s=%s: NIXL is not installed, so that KV goes over TCP", WorkerVariable.TRANSPORT, wanted)
    reach = reach_of(facts, wanted, over_tcp)
    best = common(wanted, reach, reach)
    if best is None:
        return None

    def make() -> Agent:
        # UCX's own TCP has no key: it is bound to the loopback interface, unless it is asked for.
        networks = [interface] if over_tcp and interface else []
        return NixlAgent(region, [*devices, *networks, "lo"])

    writer, landings = Writer(make, on_device=on_gpu), Landings(make, reach, wanted, place, region.blocks)
    try:
        if role != DECODE:
            writer.open()
        if role != PREFILL:
            landings.open()
    except Exception as failure:  # Its errors have no common type.
        log.warning("NIXL cannot be used, so that KV goes over TCP: %s", failure or type(failure).__name__)
        return None
    log.info("NIXL reaches other workers by %s", ", ".join(reach))
    return NixlSide(reach, best, place, devices, writer, landings)
