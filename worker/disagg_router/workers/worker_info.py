"""PURE: The router's knowledge of each worker, and of the model that they serve."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from disagg_wire.engines import EVIDENCE
from disagg_wire.fabric import FABRIC, summary
from disagg_wire.protocol import FEATURE_ADAPTER, LAST_RESORT, PROTOCOL_VERSION, READY
from disagg_wire.roles import BOTH
from disagg_wire.room import Room, parse_room


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that should exist: its name and base URL.

    `pools` contains the pools that list it, and is empty where that is not known. One that is not
    `ready` gets no requests, but tells which model is to come. `canary` is what the operator says
    of the revisions of these pools (disagg_wire.canary).
    """

    name: str
    url: str
    pools: frozenset[str] = frozenset()
    ready: bool = True
    canary: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """What answers under a name: nothing but these weights, with this LoRA adapter."""

    name: str
    """The name that clients ask for."""
    digest: str
    """The digest of the model's weights."""
    adapter: str = ""
    """The LoRA adapter; empty for the model itself."""
    adapter_digest: str = ""
    """What distinguishes two adapters of this name; empty if the workers do not tell."""
    parent: str = field(default="", compare=False)
    """The name of the model that an adapter belongs to; empty for the model itself."""

    @property
    def fingerprint(self) -> str:
        """A short name of the weights, for people and for `system_fingerprint`."""
        if not self.adapter:
            return f"fp_{self.digest[:16]}"
        parts = json.dumps([self.digest, self.adapter, self.adapter_digest]).encode()
        return f"fp_{hashlib.sha256(parts).hexdigest()[:16]}"


class Membership(Protocol):
    """A source of the list of workers."""

    synced: bool

    @property
    def deserted(self) -> bool:
        """Whether the deployment itself is gone, so that no worker will come any more."""

    def members(self) -> dict[str, Member]: ...

    def leaving(self) -> dict[str, Member]:
        """Return the workers that are about to end, as far as they are listed."""

    async def run(self) -> None:
        """Keep the list current until cancelled."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that answered `info`."""

    name: str
    """The name by which membership lists it."""
    url: str
    """The base URL of its HTTP interface."""
    pod: str
    """The name of its pod."""
    incarnation: str
    """The identity of the process (docs/protocol.md)."""
    role: str
    """One of "prefill", "decode" and "both"."""
    state: str
    """One of "starting", "ready" and "draining"."""
    revision: str
    """The revision of the deployment that it belongs to."""
    compat: str
    """The hash that is equal for workers that can exchange KV."""
    interface: str
    """The network interface that it moves KV over."""
    transport: str
    """The transport of KV, such as "tcp"."""
    digest: str
    """The digest of its weights."""
    max_model_len: int
    """The longest sequence, in tokens."""
    vocab_size: int
    """The number of token ids of the model."""
    eos_token_ids: tuple[int, ...]
    """The token ids that end a sequence."""
    bos_token_id: int | None
    """The token id that begins a sequence, if the model has one."""
    block_size_tokens: int
    """The size of a block of its KV cache, in tokens."""
    blocks_total: int
    """The number of blocks of its KV cache."""
    blocks_free: int
    """The number of blocks that are free."""
    max_running: int
    """The number of sequences that it can run at once."""
    waiting_requests: int
    """The number of requests that wait there."""
    waiting_tokens: int
    """The number of prompt tokens that wait there to be computed."""
    running_requests: int
    """The number of requests that run there."""
    pools: frozenset[str] = frozenset()
    """The pools that list it; empty where that is not known."""
    room: Room | None = None
    """The room for sequences that it reports, if it does."""
    features: frozenset[str] = frozenset()
    """The additional fields of request bodies that it accepts, and what its engine cannot do."""
    adapters: frozenset[str] = frozenset()
    """The names of the LoRA adapters that it serves."""
    adapter_digests: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What distinguishes its adapters from others of the same name, as far as it tells."""
    model: str = ""
    """The name that it serves its weights under."""
    model_revision: str = ""
    """The source revision of its weights; empty if it is not known."""
    transports: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The transports by which it reaches the memory of others, each with its domain."""
    evidence: str = ""
    """How it knows `transport`, one of disagg_wire.engines.EVIDENCE; empty if it does not say."""
    engine: str = ""
    """Its engine with its version, such as "vllm 0.33.0"; empty if it does not say."""
    fabric: Mapping[str, Any] | None = field(default=None, hash=False)
    """The RDMA devices that it can use, and what is wrong with them; None if it does not say."""
    last_resort: bool = False
    """Whether it is about to end, and takes requests from routers that have nobody else."""

    @property
    def at_home(self) -> bool:
        """Whether it does the work of the pool that lists it.

        For a while it does not, when it moves from one pool to the other.
        """
        return not self.pools or self.role == "both" or self.role in self.pools

    @property
    def standing(self) -> tuple[str, str, bool]:
        """What is news if it changes."""
        return self.incarnation, self.state, self.at_home

    def described(self) -> str:
        """Return it in words for the log."""
        elsewhere = "" if self.at_home else f", but listed by {'/'.join(sorted(self.pools))}: not used"
        return f"{self.pod}: {self.role}, {self.state}, KV over {self.transport} ({self.interface}){elsewhere}"

    def serves(self, role: str) -> bool:
        return self.state == READY and self.at_home and self.role in (role, BOTH)

    @property
    def identity(self) -> Identity:
        return Identity(self.model, self.digest)

    def identities(self) -> list[Identity]:
        """Return everything that it serves: the model, and each LoRA adapter of another name."""
        return [self.identity] + [
            Identity(name, self.digest, name, self.adapter_digests.get(name, ""), self.model)
            for name in sorted(self.adapters - {self.model})
        ]

    def offers(self, wanted: Identity) -> bool:
        """Return whether it serves exactly this under this name."""
        if not wanted.adapter:
            return wanted.name == self.model and wanted.digest == self.digest
        found = self.adapter_digests.get(wanted.adapter, "")
        has = wanted.adapter in self.adapters and found == wanted.adapter_digest
        return has and self.digest == wanted.digest and wanted.name != self.model


def name_of(info: Mapping[str, Any]) -> str:
    """Return the name that a worker serves or will serve; "" if it does not say."""
    model = info.get("model")
    said = info.get("model_name") or (model.get("name") if isinstance(model, Mapping) else "")
    return said if isinstance(said, str) else ""


def parse_info(member: Member, info: Mapping[str, Any], configured: str = "") -> Worker | None:
    """Return the worker behind an `info` answer, or None while it loads its model.

    A worker that reports no name serves the `configured` one.

    Raises ValueError for a peer that this router cannot communicate with.
    """
    if info.get("protocol") != PROTOCOL_VERSION:
        raise ValueError(f"{member.name} speaks protocol {info.get('protocol')!r}, this router {PROTOCOL_VERSION}")
    if "model" not in info:
        return None
    try:
        model, kv, limits, load = info["model"], info["kv"], info["limits"], info["load"]
        features = frozenset(str(f) for f in info.get("features", ()))
        return Worker(
            name=member.name,
            url=member.url,
            pod=str(info["pod"]) or member.name,
            incarnation=str(info["incarnation"]),
            role=str(info["role"]),
            state=str(info["state"]),
            revision=str(info["revision"]),
            compat=str(kv["compat"]),
            interface=str(kv["interface"]),
            transport=str(kv["transport"]),
            digest=str(model["digest"]),
            max_model_len=int(model["max_model_len"]),
            vocab_size=int(model["vocab_size"]),
            eos_token_ids=tuple(int(t) for t in model["eos_token_ids"]),
            bos_token_id=None if model["bos_token_id"] is None else int(model["bos_token_id"]),
            block_size_tokens=int(kv["block_size_tokens"]),
            blocks_total=int(kv["blocks_total"]),
            blocks_free=int(kv["blocks_free"]),
            max_running=int(limits["max_running"]),
            waiting_requests=int(load["waiting_requests"]),
            waiting_tokens=int(load["waiting_tokens"]),
            running_requests=int(load["running_requests"]),
            pools=member.pools,
            room=parse_room(load.get("room")),
            features=features,
            adapters=_names(model.get("adapters")) if FEATURE_ADAPTER in features else frozenset(),
            transports=_texts(kv.get("transports"), "kv.transports"),
            evidence=kv["evidence"] if kv.get("evidence") in EVIDENCE else "",
            engine=_engine(info.get("engine")),
            adapter_digests=_texts(model.get("adapter_digests"), "model.adapter_digests"),
            model=name_of(info) or configured,
            model_revision=str(model.get("revision") or ""),
            fabric=summary(info.get(FABRIC)),
            last_resort=info.get(LAST_RESORT) is True,
        )
    except (KeyError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{member.name}: info lacks or garbles {error}") from None


def _engine(value: Any) -> str:
    """Return the engine with its version, or "" if the worker does not say them."""
    words = (value.get("name"), value.get("version")) if isinstance(value, Mapping) else ()
    return " ".join(word for word in words if isinstance(word, str) and word)


def _names(value: Any) -> frozenset[str]:
    """Return a list of names that may be missing. Raises TypeError for anything else."""
    if not isinstance(value or [], list) or not all(isinstance(name, str) and name for name in value or ()):
        raise TypeError("model.adapters")
    return frozenset(value or ())


def _texts(value: Any, name: str) -> dict[str, str]:
    """Return texts by name, which may be missing. Raises TypeError for anything else."""
    if not isinstance(value or {}, Mapping) or not all(isinstance(text, str) for text in (value or {}).values()):
        raise TypeError(name)
    return dict(value or {})
