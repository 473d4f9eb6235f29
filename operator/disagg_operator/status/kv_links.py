"""PURE: How the workers move KV, as the routers report it: pairs, transports and interfaces.

A transport has one of the names in `disagg_wire.engines.TRANSPORTS`. What is known of it is
`Proved`, by counters of the engine and of the devices, or only `Configured`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_operator.vocabulary import Obj
from disagg_wire.engines import CONFIGURED, EVIDENCE, NVLINK, PROVED, RDMA, SHM, TRANSPORTS
from disagg_wire.fabric import FABRIC, FABRIC_REASONS, USABLE, summary
from disagg_wire.problems import PROBLEM, WorkerProblem, parse_problem
from disagg_wire.protocol import READY
from disagg_wire.roles import BOTH, DECODE, PREFILL

# A view of the routers that is older than this is no longer reported.
VIEW_MAX_AGE_S = 30.0
UNKNOWN = "unknown"
_MAX_INTERFACES_CHARS = 256
# These do not use a network, and none of them is slower than RDMA.
_WITHOUT_NETWORK = (NVLINK, SHM)
# What is no fallback from a transport; with others, whatever is used is as good.
_AS_GOOD = {RDMA: (RDMA, *_WITHOUT_NETWORK), NVLINK: (NVLINK,), SHM: _WITHOUT_NETWORK}
ALL = (*TRANSPORTS, UNKNOWN)


@dataclass(frozen=True, slots=True)
class WorkerLink:
    """The report of one worker on how it moves KV."""

    pod: str
    """The name of its pod."""
    role: str
    """Its role."""
    transport: str
    """The name of its transport."""
    interface: str
    """The network interface; empty if it is not known."""
    evidence: str = CONFIGURED
    """`Proved` or `Configured`."""
    compat: str = ""
    """The hash that is equal for workers that can exchange KV."""
    engine: str = ""
    """The engine with its version; empty if it is not reported."""
    devices: int = 0
    """The RDMA devices that it can use; 0 also if it does not tell."""
    problem: WorkerProblem | None = None
    """What is wrong with its RDMA devices or its limits, as it says."""


@dataclass(frozen=True, slots=True)
class PairLink:
    """How one pair that moved a KV block moves KV, where that is known."""

    pods: str
    """The names of the pods of prefill and of decode."""
    transport: str
    """The name of the transport."""
    evidence: str
    """`Proved` or `Configured`."""


@dataclass(frozen=True, slots=True)
class RouterView:
    """The pairs of prefill and decode workers as the routers report them; the worst of several."""

    expected: int
    """The number of pairs of ready workers that the router tests by a handshake."""
    healthy: int
    """The number of pairs that moved a KV block."""
    workers: tuple[WorkerLink, ...] = ()
    """The ready workers."""
    pairs: tuple[PairLink, ...] = ()
    """The healthy pairs whose transport is known."""
    moved: tuple[tuple[str, str], ...] = ()
    """The healthy pairs as the names of the pods of prefill and of decode."""

    @property
    def used(self) -> Sequence[WorkerLink | PairLink]:
        """What tells the transports: the pairs, or the workers themselves where no pair does."""
        return self.pairs or self.workers

    @property
    def transports(self) -> str:
        """The transports in use, fastest first, separated by commas."""
        used = {link.transport for link in self.used}
        return ",".join(name for name in (*TRANSPORTS, UNKNOWN) if name in used)

    @property
    def interfaces(self) -> str:
        """The network interfaces in use, separated by commas."""
        return ",".join(sorted({link.interface for link in self.workers if link.interface}))

    @property
    def evidence(self) -> str:
        """`Proved` if every transport is, otherwise `Configured`."""
        proved = bool(self.used) and all(link.evidence == PROVED for link in self.used)
        return PROVED if proved else CONFIGURED


def router_view(states: Sequence[Mapping[str, Any]]) -> RouterView | None:
    """Combine the answers of the routers to /internal/v1/state; None if no answer can be parsed."""
    views = [view for state in states if (view := _one_view(state)) is not None]
    return min(views, key=lambda v: (v.healthy, -v.expected)) if views else None


def _one_view(state: Mapping[str, Any]) -> RouterView | None:
    pairs = state.get("pairs")
    if not isinstance(pairs, Mapping):
        return None
    expected, healthy = pairs.get("expected"), pairs.get("healthy")
    if not isinstance(expected, int) or not isinstance(healthy, int):
        return None
    found = state.get("workers")
    workers = [w for w in found if isinstance(w, Mapping)] if isinstance(found, list) else []
    workers = [w for w in workers if w.get("state") == READY]
    links = state.get("links")
    found = [p for p in links if isinstance(p, Mapping)] if isinstance(links, list) else []
    pairs = [_pair(p) for p in found]
    return RouterView(
        expected,
        healthy,
        tuple(sorted(map(_link, workers), key=lambda link: link.pod)),
        tuple(sorted((p for p in pairs if p.transport in TRANSPORTS), key=lambda p: p.pods)),
        tuple(sorted((str(p.get("prefill")), str(p.get("decode"))) for p in found)),
    )


def _pair(pair: Mapping[str, Any]) -> PairLink:
    return PairLink(f"{pair.get('prefill')} to {pair.get('decode')}", str(pair.get("transport")), _evidence(pair))


def _evidence(link: Mapping[str, Any]) -> str:
    return found if (found := str(link.get("evidence"))) in EVIDENCE else CONFIGURED


def _link(worker: Mapping[str, Any]) -> WorkerLink:
    return WorkerLink(
        pod=str(worker.get("pod", "")),
        role=str(worker.get("role", "")),
        transport=transport if (transport := str(worker.get("transport"))) in TRANSPORTS else UNKNOWN,
        interface=str(worker.get("interface") or ""),
        evidence=_evidence(worker),
        compat=str(worker.get("compat") or ""),
        engine=str(worker.get("engine") or ""),
        **_fabric(worker.get(FABRIC)),
    )


def _fabric(field: Any) -> Obj:
    found = summary(field)
    if found is None:
        return {}
    problem = parse_problem(found.get(PROBLEM))
    # Two ports of one device are not two devices.
    devices = {name.partition(":")[0] for name in found[USABLE]}
    return {"devices": len(devices), "problem": problem if problem and problem.reason in FABRIC_REASONS else None}


def workers_by_transport(view: RouterView) -> dict[str, int]:
    """Return the number of ready workers by the transport that they report."""
    used = Counter(link.transport for link in view.workers)
    return {name: used[name] for name in TRANSPORTS}


def pairs_status(view: RouterView) -> Obj:
    """Return `pairs` of the status."""
    return {
        "expected": view.expected,
        "healthy": view.healthy,
        "transport": workers_by_transport(view),
        "uses": view.transports,
        "evidence": view.evidence,
        "interface": view.interfaces[:_MAX_INTERFACES_CHARS],
    }


def words_of(view: RouterView) -> str:
    """Return how KV is moved, in words: transport, evidence and interface."""
    over = f" on {view.interfaces}" if view.interfaces else ""
    return f"over {view.transports} ({view.evidence}){over}"


def fallback_of(view: RouterView, transport: str, interface: str | None) -> str | None:
    """Return a message if a worker doesn't move KV in the way that the spec requests, else None."""
    slower = [link for link in view.used if link.transport not in _AS_GOOD.get(transport, ALL)]
    if slower:
        who = _who([link.pods if isinstance(link, PairLink) else link.pod for link in slower])
        return f"transport {transport} is asked for, but {who} uses {slower[0].transport}"
    # With RDMA a worker names the device, and not the interface.
    networked = [w for w in view.workers if w.transport not in (RDMA, *_WITHOUT_NETWORK)]
    if interface is not None and (strays := [w for w in networked if w.interface != interface]):
        used = strays[0].interface or "?"
        return f"KV should use {interface}, but {_who([w.pod for w in strays])} uses {used}"
    return None


def mismatch_of(view: RouterView) -> tuple[str, str] | None:
    """Return a reason and a message if no prefill worker fits any decode worker, else None.

    None also if a pool has no ready worker.
    """
    prefill, decode = (
        {w.compat: w for w in view.workers if w.role in (role, BOTH) and w.compat} for role in (PREFILL, DECODE)
    )
    if not prefill or not decode or set(prefill) & set(decode):
        return None
    left, right = (sorted({w.engine for w in side.values()}) for side in (prefill, decode))
    if left != right:
        return "EngineMismatch", f"prefill runs {_engines(left)}, decode runs {_engines(right)}: they exchange no KV"
    return "IncompatibleKV", "the prefill and decode workers differ in model, dtype or KV layout: they exchange no KV"


def _engines(names: Sequence[str]) -> str:
    return ", ".join(name or "an engine that does not tell its version" for name in names)


def _who(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
