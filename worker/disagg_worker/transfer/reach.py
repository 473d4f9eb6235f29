"""PURE: The transports by which two workers can reach each other's memory, and the choice of one.

What a worker reaches is a domain for each transport: two workers have a transport in common if
both name the same domain for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disagg_wire.engines import NVLINK, RDMA, SHM, TCP

Reach = Mapping[str, str]
# The best first: those that stay within a machine are no slower than a network.
_ORDER = (NVLINK, SHM, RDMA, TCP)
# The domain of what a network connects.
_NETWORK = "network"
_SHARED_MEMORY = {"all", "shm", "sm", "cma"}


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process, by names that are equal for processes of the same place."""

    machine: str
    processes: str
    """The processes that it can see, which have process IDs for it."""
    neighbourhood: str
    """The processes that can share memory with it by UCX."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that a worker has found about its process and its machine."""

    library: bool
    """Whether NIXL is installed."""
    on_gpu: bool
    """Whether the KV cache is in the memory of a GPU."""
    devices: Sequence[str]
    """The RDMA devices that it can open."""
    neighbourhood: str
    """That of its place."""
    ucx_tls: str = ""
    """The transports to which the user limits UCX; empty for all."""


def reach_of(facts: Facts, wanted: str, over_tcp: bool) -> dict[str, str]:
    """Return what a worker reaches by NIXL, for the transport that the spec asks for.

    Nothing for `tcp`, which needs no NIXL, unless it is to be used over TCP too.
    """
    if not facts.library:
        return {}
    found = {TCP: _NETWORK} if over_tcp else {}
    if wanted == TCP:
        return found
    if facts.devices:
        found[RDMA] = _NETWORK
    if facts.on_gpu:
        found[NVLINK] = facts.neighbourhood
    elif _allows_shared_memory(facts.ucx_tls):
        found[SHM] = facts.neighbourhood
    return found


def _allows_shared_memory(ucx_tls: str) -> bool:
    names = {name.strip() for name in ucx_tls.removeprefix("^").split(",") if name.strip()}
    if not names:
        return True
    return not names & _SHARED_MEMORY if ucx_tls.startswith("^") else bool(names & _SHARED_MEMORY)


def common(wanted: str, mine: Reach, others: Reach) -> str | None:
    """Return the transport that both have: the wanted one, or else the best; None if there is none.

    Without one, KV goes over the workers' own TCP connections.
    """
    for name in sorted(_ORDER, key=lambda name: name != wanted):
        if name in mine and mine[name] == others.get(name):
            return name
    return None
