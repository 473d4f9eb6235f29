"""The live table of workers.

It knows which workers should exist (membership), which of them answer, how loaded they are, and the
text side of the model.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import httpx

from disagg_router.text.tokenizer import Text
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.pair_choice import (
    Breaker,
    Choice,
    Inflight,
    Prompt,
    choose,
    decode_room,
    pair_key,
)
from disagg_router.workers.pair_link import Link, declared
from disagg_router.workers.prefix_affinity import PrefixMap, prefix_names
from disagg_router.workers.worker_info import Member, Model, Worker, model_of, parse_info
from disagg_wire.protocol import DECODE_ROOM_PATH, INFO_PATH, READY, TOKENIZER_PATH
from disagg_wire.room import Room

log = logging.getLogger(__name__)
# A worker that misses this many polls is left out until it answers again.
_MISSES = 2


class Membership(Protocol):
    """A source of the list of workers."""

    synced: bool

    def members(self) -> dict[str, Member]: ...

    async def run(self) -> None:
        """Keep the list current until cancelled."""


class WorkerTable:
    """The polled `info` of every member, this router's own load on it, and the circuit breaker."""

    def __init__(self, client: WorkerClient, membership: Membership, interval_s: float) -> None:
        self._client = client
        self._membership = membership
        self._interval_s = interval_s
        self._workers: dict[str, Worker] = {}
        self._misses: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._texts: dict[str, Text] = {}
        self._model: Model | None = None
        self._adapters: frozenset[str] = frozenset()
        self._links: dict[str, Link] = {}
        self._asked = False
        self._prefixes = PrefixMap()
        self.breaker = Breaker()
        self.proven: frozenset[str] = frozenset()

    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    @property
    def synced(self) -> bool:
        """Whether the list of workers is known and every one of them was asked once.

        Before that, a router that has just started would refuse requests that the others take.
        """
        return self._asked

    def model(self) -> tuple[Text, Model] | None:
        """Return what new requests are read with: tokenizer and model.

        While no worker is ready it is the last known one, because requests may queue; it is None
        before the first worker was ready.
        """
        self._model = model_of(w for w in self._workers.values() if w.digest in self._texts) or self._model
        return None if self._model is None else (self._texts[self._model.digest], self._model)

    def adapters(self) -> frozenset[str]:
        """Return the names of the LoRA adapters that requests may ask for.

        As with `model`, the last known ones count while no worker is ready.
        """
        ready = [w for w in self._workers.values() if self._model is not None and w.digest == self._model.digest]
        if ready := [w for w in ready if w.state == READY]:
            self._adapters = frozenset(name for w in ready for name in w.adapters)
        return self._adapters

    def choose(
        self,
        *,
        digest: str,
        single_token: bool,
        full: set[str],
        tokens: Sequence[int],
        tenant: str,
        adapter: str = "",
        resumes_format: bool = False,
    ) -> Choice | None:
        """Return the workers to ask.

        The choice counts as made: its worker is expected to have these tokens from now on.
        """
        now_s = time.monotonic()
        names = prefix_names(tokens, tenant, adapter)
        choice = choose(
            self.workers(),
            digest=digest,
            single_token=single_token,
            avoid=lambda key: self.breaker.is_open(key, now_s),
            full=full,
            proven=self.proven,
            inflight=Inflight(self._requests, self._tokens),
            dice=random.random,
            prompt=Prompt(len(tokens), self._prefixes.cached_tokens(names), adapter, resumes_format),
        )
        computes = None if choice is None else choice.prefill or choice.decode
        if computes is not None:
            self._prefixes.sent(names, computes.incarnation)
        return choice

    def uncached_tokens(self, tokens: Sequence[int], tenant: str, adapter: str = "") -> int:
        """Return how many tokens of a prompt will probably have to be computed, whichever worker
        does it.
        """
        found = self._prefixes.cached_tokens(prefix_names(tokens, tenant, adapter))
        return max(1, len(tokens) - max((found.get(w.incarnation, 0) for w in self._workers.values()), default=0))

    def note_room(self, worker: Worker, room: Room | None) -> None:
        """Record the room that a worker has just reported."""
        known = self._workers.get(worker.name)
        if room is not None and known is not None and known.incarnation == worker.incarnation:
            self._workers[worker.name] = replace(known, room=room)

    def note_link(self, prefill: Worker, decode: Worker, link: Link) -> None:
        """Record what a transfer between the two has shown of their transport."""
        self._links[pair_key(prefill, decode)] = link

    def link(self, prefill: Worker, decode: Worker) -> Link:
        """Return what moves the KV of a pair: what its last transfer has shown, or what the two
        declare.
        """
        return self._links.get(pair_key(prefill, decode)) or declared(prefill, decode)

    def decode_room(self, prefill: Worker) -> Room | None:
        """Return the room of the decode workers behind a prefill worker, if it asks for it."""
        return None if prefill.room is None else decode_room(self._workers.values(), prefill.compat)

    @contextmanager
    def busy(self, worker: Worker | None, *, requests: int = 0, tokens: int = 0) -> Iterator[None]:
        """Count requests, and prompt tokens to compute, as under way on a worker."""
        if worker is None:
            yield
            return
        key = worker.incarnation
        self._requests[key] += requests
        self._tokens[key] += tokens
        try:
            yield
        finally:
            self._requests[key] -= requests
            self._tokens[key] -= tokens

    def lost(self, incarnation: str) -> None:
        """Drop a worker to which a stream broke; it is not chosen again before it has answered a
        poll.
        """
        for name, worker in list(self._workers.items()):
            if worker.incarnation == incarnation:
                del self._workers[name]

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            started_s = time.monotonic()
            await self.refresh()
            await asyncio.sleep(max(0.05, self._interval_s - (time.monotonic() - started_s)))

    async def refresh(self) -> None:
        """Poll all members once."""
        listed, members = self._membership.synced, self._membership.members()
        for name in set(self._workers) - set(members):
            log.info("worker %s has left", name)
            del self._workers[name]
        for name in set(self._misses) - set(members):
            del self._misses[name]
        await asyncio.gather(*(self._poll(m) for m in members.values()))
        alive = {w.incarnation for w in self._workers.values()}
        self.breaker.keep_only(alive, time.monotonic())
        self._links = {key: link for key, link in self._links.items() if all(p in alive for p in key.split("|"))}
        for counter in (self._requests, self._tokens):
            for key in [k for k, n in counter.items() if n <= 0 and k not in alive]:
                del counter[key]
        await asyncio.gather(
            *(self._tell_room(w) for w in self.workers() if w.role == "prefill" and w.serves("prefill"))
        )
        await self._refresh_texts()
        # This is done even if no request asks for it: when all workers are away at once, requests
        # wait for them and are not refused.
        self.model()
        self.adapters()
        self._asked = self._asked or listed

    async def _tell_room(self, prefill: Worker) -> None:
        """Tell a prefill worker the room of decode.

        This is best effort, because each request that goes there carries it too.
        """
        if (room := self.decode_room(prefill)) is None:
            return
        try:
            await self._client.post(prefill.url, DECODE_ROOM_PATH, room.to_json())
        except httpx.HTTPError as error:
            log.debug("worker %s was not told of decode's room: %s", prefill.pod, str(error) or type(error).__name__)

    async def _poll(self, member: Member) -> None:
        try:
            worker = parse_info(member, await self._client.get(member.url, INFO_PATH))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            self._misses[member.name] += 1
            if self._misses[member.name] >= _MISSES and member.name in self._workers:
                del self._workers[member.name]
                log.warning("worker %s is lost: %s", member.name, str(error) or type(error).__name__)
            elif self._misses[member.name] == _MISSES:
                log.warning("worker %s does not answer: %s", member.name, str(error) or type(error).__name__)
            return
        self._misses[member.name] = 0
        if worker is None:
            self._workers.pop(member.name, None)
            return
        known = self._workers.get(member.name)
        if known is None or (known.incarnation, known.state, known.at_home) != (
            worker.incarnation,
            worker.state,
            worker.at_home,
        ):
            elsewhere = "" if worker.at_home else f", but listed by {'/'.join(sorted(worker.pools))}: not used"
            log.info(
                "worker %s: %s, %s, KV over %s (%s)%s",
                worker.pod, worker.role, worker.state, worker.transport, worker.interface, elsewhere,
            )  # fmt: skip
        self._workers[member.name] = worker

    async def _refresh_texts(self) -> None:
        """Fetch the tokenizer of each new model, and drop those of models that are gone.

        There are at most a few: two during a rollout.
        """
        ready = {w.digest: w for w in self._workers.values() if w.state == READY}
        for digest in set(self._texts) - set(ready) - ({self._model.digest} if self._model else set()):
            del self._texts[digest]
        for digest, worker in ready.items():
            if digest in self._texts:
                continue
            try:
                files = await self._client.get(worker.url, TOKENIZER_PATH, timeout_s=10.0)
                self._texts[digest] = await asyncio.to_thread(Text, files)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                log.error("no tokenizer from %s: %s", worker.pod, str(error) or type(error).__name__)
