"""One end of transfers by NIXL, as a process that a test can stop and kill.

    python -m tests.worker.nixl.end decode|prefill HOST PROCESSES RELEASE_S

It reads commands from its input, one JSON object a line, and answers each with one.
"""

from __future__ import annotations

import hashlib
import json
import queue
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from tests.fakes.kv_memory import KvMemory
from tests.worker.transfer.rig import KEY, ticket_of

from disagg_protocol.events import TokenEvent
from disagg_protocol.ticket import sign, verify
from disagg_wire.engines import AUTO, TCP
from disagg_worker.transfer import landing, writes
from disagg_worker.transfer.landing import Landings
from disagg_worker.transfer.listener import KvListener, Session
from disagg_worker.transfer.nixl_agent import Agent, NixlAgent
from disagg_worker.transfer.nixl_peers import Writer
from disagg_worker.transfer.reach import Place
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sender import TransferDone
from disagg_worker.transfer.sender_timeouts import SenderTimeouts
from disagg_worker.transfer.writes import NixlKvSender
from disagg_worker.values.kv_blocks import KvBlocks
from disagg_worker.values.layouts import KvLayout

LAYOUT = KvLayout(layers=4, kv_heads=4, head_dim=64, block_size_tokens=16, dtype="bfloat16", itemsize_bytes=2)
BLOCK_BYTES = LAYOUT.layers * LAYOUT.layer_block_bytes
BLOCKS = 1024
PREFILL = "prefill/boot"
_WAIT_S = 120.0


class Cache(KvMemory):
    """A cache with other bytes for each seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(LAYOUT, BLOCKS, np.random.default_rng(seed).bytes(BLOCKS * BLOCK_BYTES))

    def digest(self, ids: list[int]) -> str:
        found = hashlib.sha256()
        for block in ids:
            found.update(self.bytes[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        return found.hexdigest()


class Reserved:
    """Implements contract.Reservation."""

    held_blocks = 0

    def __init__(self, cache: Cache, ids: list[int]) -> None:
        self._cache, self._ids = cache, ids
        self.n_blocks = len(ids)
        self.released = 0

    def blocks(self, first: int, n: int) -> KvBlocks:
        return KvBlocks(self._cache, self._ids[first : first + n])

    def written_in_region(self) -> None:
        pass

    def release(self) -> None:
        self.released += 1


class Decode:
    def __init__(self, host: str, place: Place) -> None:
        self.cache = Cache(0)
        self.listener = KvListener(host, 0, KEY, LAYOUT, 100, idle_s=1.0)
        reach = {TCP: "network"}
        self.landings = Landings(lambda: _agent(self.cache), reach, AUTO, place, BLOCKS)
        self.landings.open()
        self.outcomes: queue.SimpleQueue[Received | str] = queue.SimpleQueue()
        self.reserved: list[Reserved] = []
        self.session: Session | None = None

    def offer(self, ids: list[int], prefill: str = PREFILL, integrity: str = "mac") -> dict[str, Any]:
        self.landings.open()
        reserved = Reserved(self.cache, ids)
        offered = self.landings.offer({TCP: "network"}, prefill, reserved)
        tokens = list(range(len(ids) * LAYOUT.block_size_tokens))
        offer = offered[0].encode() if offered else ""
        ticket = ticket_of(self.listener, tokens, prefill_incarnation=prefill, integrity=integrity, offer=offer)
        landed = offered[1] if offered else None
        failed = lambda _code, message: self.outcomes.put(str(message))  # noqa: E731
        self.session = Session(sign(KEY, ticket), reserved, self.outcomes.put, failed, landing=landed)
        self.reserved.append(reserved)
        self.listener.expect(self.session)
        return {"ticket": self.session.ticket.to_json(), "agent": offered[0].agent if offered else None}

    def cancel(self) -> dict[str, Any]:
        assert self.session is not None
        self.listener.cancel(self.session)
        return {}

    def outcome(self) -> dict[str, Any]:
        got = self.outcomes.get(timeout=_WAIT_S)
        if isinstance(got, str):
            return {"error": got}
        return {"kv_bytes": got.kv_bytes, "token": got.first_token, "moved": got.moved and asdict(got.moved)}

    def state(self, ids: list[int]) -> dict[str, Any]:
        released = [reserved.released for reserved in self.reserved]
        return {"held": self.landings.held_blocks, "released": released, "digest": self.cache.digest(ids)}


class Prefill:
    def __init__(self, host: str, place: Place) -> None:
        self.cache = Cache(1)
        self.writer = Writer(lambda: _agent(self.cache))
        self.writer.open()
        self._host, self._place = host, place
        self.done: queue.SimpleQueue[TransferDone] = queue.SimpleQueue()
        self.sender: NixlKvSender | None = None

    def send(self, ticket: dict[str, Any], ids: list[int], first: int = 0, end: bool = True) -> dict[str, Any]:
        """Report blocks as computed; from the first ones on, this is a new transfer."""
        if first == 0:
            known = verify(KEY, ticket)
            ends = known, KEY, PREFILL, list(range(known.tokens)), (self._host, "lo"), self.done.put
            times = SenderTimeouts(progress_s=0.2, peer_s=1.0)
            self.sender = NixlKvSender(*ends, times, writer=self.writer, layout=LAYOUT, place=self._place)
        assert self.sender is not None
        for layer in range(LAYOUT.layers):
            self.sender.layer_ready(layer, first, KvBlocks(self.cache, ids))
        if end:
            self.sender.commit(TokenEvent(0, 7))
        return {"digest": self.cache.digest(ids)}

    def cancel(self) -> dict[str, Any]:
        assert self.sender is not None
        self.sender.cancel()
        return {}

    def outcome(self) -> dict[str, Any]:
        done = self.done.get(timeout=_WAIT_S)
        if done.error is not None:
            return {"error": done.error.message}
        return {"kv_bytes": done.kv_bytes, "moved": done.moved and asdict(done.moved), "interface": done.interface}


def _agent(cache: Cache) -> Agent:
    return NixlAgent(cache.region, ["lo"])


def main() -> None:
    role, host, processes, release_s = sys.argv[1:]
    place = Place("machine", processes, "")
    landing.RELEASE_S = float(release_s)
    writes._CONNECT_S = 5.0
    end = Decode(host, place) if role == "decode" else Prefill(host, place)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(end, command.pop("do"))(**command)), flush=True)


if __name__ == "__main__":
    main()
