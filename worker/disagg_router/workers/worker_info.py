"""PURE: What the router knows of each worker, and of the model that they serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from disagg_wire.protocol import PROTOCOL_VERSION, READY
from disagg_wire.roles import BOTH
from disagg_wire.room import Room, parse_room


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that should exist: its name and base URL.

    `pools`: those that list it, none where that is not known.
    """

    name: str
    url: str
    pools: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that answered `info`."""

    name: str
    url: str
    pod: str
    incarnation: str
    role: str
    state: str
    revision: str
    compat: str
    interface: str
    transport: str
    digest: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    block_size_tokens: int
    blocks_total: int
    blocks_free: int
    max_running: int
    waiting_requests: int
    waiting_tokens: int
    running_requests: int
    pools: frozenset[str] = frozenset()
    room: Room | None = None
    features: frozenset[str] = frozenset()

    @property
    def at_home(self) -> bool:
        """It does the work of the pool that lists it.

        Not so for a while when it moves from one to the other.
        """
        return not self.pools or self.role == "both" or self.role in self.pools

    def serves(self, role: str) -> bool:
        return self.state == READY and self.at_home and self.role in (role, BOTH)


def parse_info(member: Member, info: Mapping[str, Any]) -> Worker | None:
    """The worker behind an `info` answer; None while it loads its model.

    Raises ValueError for a peer we can't speak with.
    """
    if info.get("protocol") != PROTOCOL_VERSION:
        raise ValueError(f"{member.name} speaks protocol {info.get('protocol')!r}, this router {PROTOCOL_VERSION}")
    if "model" not in info:
        return None
    try:
        model, kv, limits, load = info["model"], info["kv"], info["limits"], info["load"]
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
            features=frozenset(str(f) for f in info.get("features", ())),
        )
    except (KeyError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{member.name}: info lacks or garbles {error}") from None


@dataclass(frozen=True, slots=True)
class Model:
    """What requests are checked against.

    Workers of one digest compute the same tokens; the smallest of their limits holds.
    """

    digest: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


def model_of(workers: Iterable[Worker]) -> Model | None:
    """The model that new requests go to: of several (during a rollout) one that a whole pair
    serves, then the one with more decode workers. None while nobody is ready.
    """
    by_digest: dict[str, list[Worker]] = {}
    for w in workers:
        if w.state == READY:
            by_digest.setdefault(w.digest, []).append(w)

    def rank(digest: str) -> tuple[bool, int, str]:
        decodes = sum(w.serves("decode") for w in by_digest[digest])
        return (decodes > 0 and any(w.serves("prefill") for w in by_digest[digest])), decodes, digest

    if not by_digest:
        return None
    listed = by_digest[max(by_digest, key=rank)]
    first = listed[0]
    return Model(first.digest, min(w.max_model_len for w in listed), first.vocab_size, first.eos_token_ids)
