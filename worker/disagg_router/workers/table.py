"""The live table of workers.

It knows which workers should exist (membership), which of them answer, how loaded they are, and the
text side of the model.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import httpx

from disagg_router.text.tokenizer import Text
from disagg_router.workers.breaker import Breaker
from disagg_router.workers.canary import Canary, canary_of, chosen
from disagg_router.workers.catalogue import Catalogue, KnownNames, catalogue_of
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.coming_models import ComingModels
from disagg_router.workers.lease import Limits, Verdict
from disagg_router.workers.leaving_workers import LeavingWorkers
from disagg_router.workers.lifelines import Lifelines
from disagg_router.workers.missed_polls import MissedPolls
from disagg_router.workers.pair_choice import (
    Choice,
    Inflight,
    Prompt,
    choose,
    decode_room,
    pair_key,
)
from disagg_router.workers.pair_link import Link, declared
from disagg_router.workers.prefix_affinity import STRIDE_TOKENS, PrefixMap, prefix_names
from disagg_router.workers.pulses import Pulses
from disagg_router.workers.reserves import with_reserves
from disagg_router.workers.rounds import Job, Rounds
from disagg_router.workers.texts import Texts
from disagg_router.workers.worker_info import Identity, Member, Membership, Worker, name_of, parse_info
from disagg_wire.protocol import DRAINING, READY
from disagg_wire.room import Room

log = logging.getLogger(__name__)
# A worker that misses this many polls is left out until it answers again.
_MISSES = 2
# How long a round waits for the slowest workers, if that is more than the interval.
_PATIENCE_S = 0.5
# The time for which it is known that a worker was lost; no poll takes as long.
_REMEMBERED_S = 60.0
# A poll without an answer counts if this process was awake for so much of its time.
_AWAKE_S = 1.0


class WorkerTable:
    """The polled `info` of every member, this router's own load on it, and the circuit breaker.

    `changed` is called whenever `catalogue`, or what starting workers say, is another one.
    """

    def __init__(
        self,
        client: WorkerClient,
        membership: Membership,
        interval_s: float,
        names: KnownNames | None = None,
        changed: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
    ) -> None:
        self._client = client
        self.lifelines = Lifelines()
        self.pulses = Pulses(client, limits or Limits(), self._judged)
        self.gave_up: Callable[[str], None] = lambda _: None
        """Called with the reason when a worker is given up together with its streams."""
        self._rounds = Rounds()
        self.names = names or KnownNames("", 0.0)
        self.catalogue = Catalogue()
        self.canary: Canary | None = None
        self.warm_up_s = 0.0
        """How long a worker is fresh after its first request."""
        self._used_since_s: dict[str, float] = {}
        self._changed = changed
        self._coming = ComingModels(client, membership, interval_s)
        self._membership = membership
        self._interval_s = interval_s
        self._workers: dict[str, Worker] = {}
        self._leaving = LeavingWorkers(client)
        self.active: Callable[[], bool] = lambda: False
        """Whether this router has requests to answer."""
        self.ending = False
        """Whether this router is about to end, and the workers perhaps with it."""
        self.misses = MissedPolls()
        self._lost: dict[str, Worker] = {}
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._texts = Texts(client)
        self._links: dict[str, Link] = {}
        self._asked = False
        # What starting workers have said, and whether all have.
        self._told: tuple[frozenset[str], bool] = (frozenset(), True)
        # The addresses of listed members that have said once which model they serve, by name.
        self._have_said: dict[str, str] = {}
        # When workers were lost: the answers of polls that began before may be older.
        self._broke: dict[str, float] = {}
        self._prefixes = PrefixMap()
        self._decoded = PrefixMap()
        self.breaker = Breaker(dice=random.random)
        self.proven: frozenset[str] = frozenset()

    def workers(self) -> list[Worker]:
        """Return the workers by which requests may be served, and the others that are listed.

        Those that are about to end count as ready while there is nobody else.
        """
        return with_reserves(self._workers.values(), self._leaving.workers())

    @property
    def synced(self) -> bool:
        """Whether the list of workers is known and every one of them was asked once.

        Before that, a router that has just started would refuse requests that the others take.
        """
        return self._asked

    def text(self, identity: Identity) -> Text:
        """Return the tokenizer of an identity that is served, or was just served."""
        return self._texts.known[identity.digest]

    def choose(
        self,
        *,
        identity: Identity,
        single_token: bool,
        full: set[str],
        tokens: Sequence[int],
        tenant: str,
        resumes_format: bool = False,
        roll: float = 1.0,
    ) -> Choice | None:
        """Return the workers to ask. While a revision is tried, `roll` decides which one it is.

        The choice counts as made: its worker is expected to have these tokens from now on.
        """
        now_s = time.monotonic()
        names = prefix_names(tokens, tenant, identity.adapter)

        def ask(workers: Sequence[Worker], full: Collection[str]) -> Choice | None:
            return choose(
                workers,
                identity=identity,
                single_token=single_token,
                avoid=lambda key: self.breaker.is_open(key, now_s),
                full=full,
                proven=self.proven,
                inflight=Inflight(self._requests, self._tokens),
                dice=random.random,
                prompt=Prompt(
                    len(tokens),
                    self._prefixes.cached_tokens(names),
                    self._decoded.cached_tokens(names),
                    resumes_format,
                ),
            )

        everyone = self.workers()
        choice = ask(everyone, full) if self.canary is None else chosen(self.canary, everyone, roll, full, ask)
        computes = None if choice is None else choice.prefill or choice.decode
        if computes is not None:
            self._prefixes.sent(names, computes.incarnation)
        if choice is not None and choice.decode is not None:
            self._decoded.sent(names, choice.decode.incarnation)
        for worker in () if choice is None else filter(None, (choice.prefill, choice.decode)):
            self._used_since_s.setdefault(worker.name, now_s)
        return choice

    def decoded(self, tokens: Sequence[int], tenant: str, identity: Identity, choice: Choice) -> None:
        """Note that the decode worker of a choice has these tokens, a prompt and its answer."""
        if choice.decode is None:
            return
        names = prefix_names(tokens, tenant, identity.adapter)
        self._decoded.sent(names, choice.decode.incarnation)
        if choice.prefill is None:
            self._prefixes.sent(names, choice.decode.incarnation)

    def not_prefilled(self, tokens: Sequence[int], tenant: str, identity: Identity, choice: Choice) -> None:
        """Note that the prefill worker of a choice has not computed these tokens after all."""
        if choice.prefill is not None:
            names = prefix_names(tokens, tenant, identity.adapter)
            known = -(-(len(tokens) - choice.computed_tokens) // STRIDE_TOKENS)
            self._prefixes.not_sent(names[known:], choice.prefill.incarnation)

    def is_fresh(self, worker: Worker, arrived_s: float) -> bool:
        """Return whether a worker was not warm yet for a request that arrived at that time.

        One whose process has restarted in its pod is not fresh again: it may crash all the time.
        """
        used_since_s = self._used_since_s.get(worker.name, -math.inf)  # one that is gone was no news
        return self.warm_up_s > 0 and arrived_s < used_since_s + self.warm_up_s

    def uncached_tokens(self, tokens: Sequence[int], tenant: str, identity: Identity) -> int:
        """Return how many tokens of a prompt will probably have to be computed, whichever prefill
        worker does it, or decode worker where there are none.
        """
        found = self._prefixes.cached_tokens(prefix_names(tokens, tenant, identity.adapter))
        able = [w for w in self.workers() if w.offers(identity)]
        able = [w for w in able if w.serves("prefill")] or able
        have = (found.get(w.incarnation, 0) for w in able)
        return max(1, len(tokens) - max(have, default=0))

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
        return None if prefill.room is None else decode_room(self.workers(), prefill.compat)

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
        poll that begins after this.
        """
        self._broke[incarnation] = time.monotonic()
        self._leaving.lost(incarnation)
        for name, worker in list(self._workers.items()):
            if worker.incarnation == incarnation:
                del self._workers[name]

    async def run(self) -> None:
        """Poll until cancelled."""
        await asyncio.gather(self._run(), self._coming.run(), self.pulses.run())

    async def _run(self) -> None:
        try:
            while True:
                started_s = time.monotonic()
                await self.refresh()
                await asyncio.sleep(max(0.05, self._interval_s - (time.monotonic() - started_s)))
        finally:
            await self._rounds.close()

    def _judged(self, worker: Worker, verdict: Verdict) -> None:
        """Give a worker up that is silent or hangs, and all its streams, until it is not so."""
        if verdict is Verdict.ALIVE:
            log.info("worker %s is heard of again", worker.pod)
            return
        served = any(w.incarnation == worker.incarnation and w.state == READY for w in self._workers.values())
        self.breaker.failed(worker.incarnation, time.monotonic())
        self.lost(worker.incarnation)
        # One that has drained and ended falls silent too, before it is no longer listed.
        if self._end_streams(worker, f"is {verdict}", f"worker_{verdict}") or served:
            self.gave_up(f"worker_{verdict}")

    def _end_streams(self, worker: Worker, what: str, reason: str, heard_before_s: float | None = None) -> int:
        n = self.lifelines.cut(worker.name, f"{worker.pod} {what}", reason, heard_before_s)
        if n or heard_before_s is None:
            log.warning("worker %s %s: %d streams go on elsewhere", worker.name, what, n)
        return n

    async def refresh(self) -> None:
        """Poll all members once."""
        listed, everyone = self._membership.synced, self._membership.members()
        self.canary = canary_of(everyone.values())
        listed_now = everyone.keys() | self._membership.leaving().keys()
        self._used_since_s = {name: since_s for name, since_s in self._used_since_s.items() if name in listed_now}
        members = {name: m for name, m in everyone.items() if m.ready}
        for name in set(self._workers) - set(members):
            log.info("worker %s has left", name)
            del self._workers[name]
        self.misses.keep_only(everyone.keys())
        self._lost = {name: worker for name, worker in self._lost.items() if name in members}
        self.pulses.keep_only(listed_now)
        # A router that ends may be one of a deployment that is deleted with all its workers.
        active = self.active()
        serving = [w for w in self.workers() if w.state == READY]
        needed = {w.name for w in serving if self.ending or (w.last_resort and active)}
        if not serving and (self.ending or active):
            # Those that have notice to leave: they may be the last ones.
            needed = {w.name for w in self._workers.values() if w.state == DRAINING}
        leaving = {name: m for name, m in self._membership.leaving().items() if name not in members}
        self._broke = {key: at_s for key, at_s in self._broke.items() if at_s > time.monotonic() - _REMEMBERED_S}
        polls: dict[str, Job] = {name: partial(self._poll, m, needs=name in needed) for name, m in members.items()}
        polls[""] = partial(self._leaving.poll, leaving, needed, self.names.configured)
        answered = await self._rounds.go(polls, max(self._interval_s, _PATIENCE_S))
        alive = {w.incarnation for w in self.workers()}
        self.breaker.keep_only(alive | self._broke.keys(), time.monotonic())
        self._links = {key: link for key, link in self._links.items() if all(p in alive for p in key.split("|"))}
        for counter in (self._requests, self._tokens):
            for key in [k for k, n in counter.items() if n <= 0 and k not in alive]:
                del counter[key]
        told = [(w, self.decode_room(w)) for w in self.workers() if w.role == "prefill" and w.serves("prefill")]
        jobs: dict[str, Job] = {f"room {w.name}": partial(self._client.tell_room, w, room) for w, room in told if room}
        self._coming.keep_only(set(self._membership.members()) - set(self._workers))
        await self._rounds.go(
            jobs | {"texts": partial(self._texts.fetch, self.workers())}, max(self._interval_s, _PATIENCE_S)
        )
        self._refresh_catalogue()
        self._asked = self._asked or (listed and answered)

    @property
    def deserted(self) -> bool:
        """Whether there is no worker left that takes requests, and none will come."""
        return self._membership.deserted and not any(w.state == READY for w in self.workers())

    def _catalogue(self) -> Catalogue:
        return catalogue_of(self.workers(), self.proven, self._texts.known, self.canary)

    def _refresh_catalogue(self) -> None:
        before, self.catalogue = self.catalogue, self._catalogue()
        members = self._membership.members()
        self._have_said = {name: url for name, url in self._have_said.items() if name in members}
        # A worker that has ended is not one that is still to say what it will serve.
        said = {name for name, member in members.items() if self._have_said.get(name) == member.url}
        silent = members.keys() - said - self._workers.keys() - self._coming.members()
        told = self._told
        self._told = (self._coming.names(), not silent)
        self.names.update(self.catalogue, self._coming.names(), time.monotonic(), all_told=not silent)
        used = self.names.digests() | {w.digest for w in self.workers() if w.state == READY}
        self._texts.keep_only(used)
        if self.catalogue != before:
            log.info("models: %s", "; ".join(self.catalogue.lines()) or "none")
        if (self.catalogue, self._told) != (before, told):
            self._changed()

    def _does_not_answer(self, name: str, since_s: float, why: str, first: bool) -> None:
        """Give a worker up, and with each poll the streams of which no line has come since."""
        lost = self._workers.pop(name, None)
        if lost is not None:
            log.warning("worker %s is lost: %s", name, why)
            self._lost[name] = lost
        elif first:
            log.warning("worker %s does not answer: %s", name, why)
        if name in self._lost and not self.pulses.vouches_for(self._lost[name]):
            if lost is not None:
                self.gave_up("worker_lost")
            self._end_streams(self._lost[name], "is lost", "worker_lost", since_s)

    async def _poll(self, member: Member, *, needs: bool) -> None:
        began_s, loop_s, awake_s = time.monotonic(), asyncio.get_running_loop().time(), self.pulses.awake_s
        try:
            info = await self._client.info(member.url, needs=needs)
            worker = parse_info(member, info, self.names.configured)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            if isinstance(error, httpx.TimeoutException) and self.pulses.awake_s - awake_s < _AWAKE_S:
                return  # This process starved, and the answer may lie here unread.
            missed, since_s = self.misses.missed(member.name, loop_s)
            if missed >= _MISSES:
                self._does_not_answer(member.name, since_s, str(error) or type(error).__name__, missed == _MISSES)
            return
        self.misses.answered(member.name, loop_s)
        self._lost.pop(member.name, None)
        if worker is not None or name_of(info):
            self._have_said[member.name] = member.url
        if worker is not None:
            self.pulses.note(worker)
            if self._broke.get(worker.incarnation, -math.inf) >= began_s or self.pulses.is_down(worker):
                return
        if worker is None:
            self._workers.pop(member.name, None)
            self._coming.note(member.name, name_of(info))
            return
        known = self._workers.get(member.name)
        if known is None or known.standing != worker.standing:
            log.info("worker %s", worker.described())
        self._workers[member.name] = worker
