"""The memory of a decode worker, into which prefill workers write by NIXL.

NIXL has no thread of its own here, which would use a whole core: while somebody may write, a thread
of ours lets it work.

A prefill worker that falls silent may write later. Its blocks are in quarantine until it has said
that it writes no more, or cannot: the agent that offered them is closed, which ends all its
connections, and a process that shares memory with this one has ended.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from disagg_worker.engine.contract import Reservation
from disagg_worker.transfer.frames import FrameError
from disagg_worker.transfer.nixl_agent import Agent
from disagg_worker.transfer.offers import Offer
from disagg_worker.transfer.reach import Place, Reach, common
from disagg_worker.transfer.sender_timeouts import TransferFailed

log = logging.getLogger(__name__)
# A silent prefill worker gets this time to say that it writes no more.
RELEASE_S = 10.0
# A frozen process of this machine gets this time.
FROZEN_S = 600.0
# With more of the cache than this in quarantine, nothing is offered.
_MOST_HELD = 0.25
# Between two attempts to make an agent, which may cost a second of every request that waits for it.
_FIRST_PAUSE_S, _MOST_PAUSE_S = 2.0, 120.0
_LOOK_S = 0.1
_POLL_S = 0.001


class _Generation:
    """An agent, until it is closed. Its fields are guarded by the lock of Landings."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.live = 0
        """Transfers that may use it."""
        self.closed = False


class Landing:
    """The offer of one transfer, and what becomes of its blocks."""

    def __init__(self, owner: Landings, generation: _Generation, reservation: Reservation, prefill: str) -> None:
        self._owner = owner
        self.generation = generation
        self.reservation = reservation
        self.prefill = prefill
        """The incarnation of the prefill worker."""
        self.neighbour_fd: int | None = None
        """A descriptor of the process, if it shares memory with this one."""
        self._unseen = False
        """Whether a process of this machine that is not seen from here may write to the GPU."""
        self._told = False
        self._left = False
        self.begun = False
        self.quiet = True
        """Whether nobody writes into the blocks."""
        self.ended = False
        self.held_until_s: float | None = None

    def begin(self, content: Mapping[str, Any]) -> None:
        """Let prefill write from now on. Raises FrameError."""
        pid = content.get("pid")
        if self.begun or isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
            raise FrameError("WRITES: must come once, with a process ID")
        here = self._owner.place
        self._unseen = content.get("machine") == here.machine and self.generation.agent.region.device is not None
        if content.get("processes") == here.processes:
            self._unseen = False
            try:
                self.neighbour_fd = os.pidfd_open(pid)
            except OSError:
                raise FrameError(f"WRITES: there is no process {pid}") from None
        self.reservation.written_in_region()
        self.begun, self.quiet = True, False
        self._owner.begin(self)

    def await_notification(self, tag: bytes, timeout_s: float) -> None:
        """Wait until NIXL has notified this end. Raises TimeoutError or TransferFailed."""
        until_s = time.monotonic() + timeout_s
        while not self.generation.agent.notified(tag):
            if time.monotonic() > until_s:
                raise TimeoutError("NIXL has not notified the end of the writes")
            time.sleep(_POLL_S)

    def may_be_told(self) -> bool:
        """Return whether prefill may still say that it writes no more, though it has not in time.

        So it is with a process of this machine that is frozen: its blocks are held all the while.
        """
        self.silent()
        return self._owner.waits_for_process(self)

    def forget_neighbour(self) -> None:
        """Note that no process writes by shared memory any more."""
        self._told = True

    def neighbour_has_ended(self) -> bool:
        """Return whether no process can write by shared memory. The owner's lock is held."""
        if self._told or self.neighbour_fd is None:
            return self._told or self._left or not self._unseen
        process = select.poll()
        process.register(self.neighbour_fd, select.POLLIN)
        return bool(process.poll(0))

    def end(self) -> None:
        """Give the offer up: nobody writes (idempotent). The blocks belong to the caller."""
        self.quiet = True
        self._owner.end(self)

    def hold(self) -> None:
        """Take the blocks over until nobody can write into them any more."""
        self._owner.hold(self)

    def released(self, flushed: bool) -> None:
        """Note that prefill writes no more.

        Unless it is known that all has arrived, what is on its way arrives until the agent is
        closed.
        """
        self._owner.released(self, flushed)

    def silent(self, *, left: bool = False) -> None:
        """Note that prefill will not say that it writes no more, perhaps since it has left."""
        self._left = self._left or left
        self.held_until_s = min(self.held_until_s or math.inf, time.monotonic())


class Landings:
    """The offers of one worker. `make` makes an agent that has its cache registered."""

    def __init__(self, make: Callable[[], Agent], reach: Reach, wanted: str, place: Place, blocks: int) -> None:
        self._make = make
        self._reach = reach
        self._wanted = wanted
        self.place = place
        self._most_blocks = max(1, int(blocks * _MOST_HELD))
        self._changed = threading.Condition()
        self._opening = threading.Lock()
        self._pause_s = self._closed_until_s = 0.0
        """The pause after the next failure, and the end of the present one."""
        self._current: _Generation | None = None
        self._held: list[Landing] = []
        self._retired: list[_Generation] = []
        self._begun: list[Landing] = []
        self._working = False
        self._watching = False

    @property
    def held_blocks(self) -> int:
        """The number of blocks in quarantine."""
        with self._changed:
            return sum(landing.reservation.n_blocks for landing in self._held)

    @property
    def is_open(self) -> bool:
        return self._current is not None

    @property
    def may_open(self) -> bool:
        """Whether there is no agent, and one may be made now."""
        return self._current is None and time.monotonic() >= self._closed_until_s

    def open(self) -> None:
        """Make the agent, if there is none; that may take a second. Raises what NIXL raises.

        After a second failure nobody tries it for a while, which doubles with the next ones.
        """
        with self._opening:
            if self._current is not None:
                return
            if time.monotonic() < self._closed_until_s:
                raise TransferFailed("NIXL could make no agent, and is tried again later")
            try:
                generation = _Generation(self._make())
            except Exception:
                self._closed_until_s = time.monotonic() + self._pause_s
                self._pause_s = min(_MOST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pause_s))
                raise
            self._pause_s = 0.0
            with self._changed:
                self._current = generation

    def offer(self, others: Reach, prefill: str, reservation: Reservation) -> tuple[Offer, Landing] | None:
        """Offer the blocks of a reservation to a prefill worker, by its reach and its incarnation.

        None if the two have no transport in common, or if it must first give back what it holds.
        """
        transport = common(self._wanted, self._reach, others)
        with self._changed:
            generation = self._current
            if transport is None or generation is None or any(landing.prefill == prefill for landing in self._held):
                return None
            if sum(landing.reservation.n_blocks for landing in self._held) > self._most_blocks:
                return None
            generation.live += 1
        agent = generation.agent
        blocks = tuple(reservation.blocks(0, reservation.n_blocks).ids)
        offer = Offer(agent.name, agent.metadata, transport, agent.region, blocks)
        return offer, Landing(self, generation, reservation, prefill)

    def begin(self, landing: Landing) -> None:
        with self._changed:
            self._begun.append(landing)
            start, self._working = not self._working, True
        if start:
            threading.Thread(target=self._work, name="kv-nixl", daemon=True).start()

    def _work(self) -> None:
        """Let the agents work while somebody may write; at most one thread does so."""
        while True:
            with self._changed:
                agents = {h.generation.agent for h in self._begun if not h.generation.closed}
                if not agents:
                    self._working = False
                    return
            for agent in agents:
                try:
                    agent.progress()
                except TransferFailed as failure:
                    log.info("NIXL agent %s: %s", agent.name, failure)
            time.sleep(_POLL_S)

    def _forget(self, landing: Landing) -> None:
        """Note that nobody writes for a landing any more. The lock is held."""
        if landing in self._begun:
            self._begun.remove(landing)
        if landing.neighbour_fd is not None:
            os.close(landing.neighbour_fd)
            landing.neighbour_fd = None

    def end(self, landing: Landing) -> None:
        with self._changed:
            if landing.ended:
                return
            landing.ended = True
            landing.generation.live -= 1
            self._forget(landing)
            self._changed.notify_all()

    def hold(self, landing: Landing) -> None:
        with self._changed:
            if landing.ended:
                return
            landing.ended = True
            landing.generation.live -= 1
            landing.held_until_s = min(landing.held_until_s or math.inf, time.monotonic() + RELEASE_S)
            self._held.append(landing)
            start, self._watching = not self._watching, True
            self._changed.notify_all()
        if start:
            threading.Thread(target=self._watch, name="kv-quarantine", daemon=True).start()

    def look(self) -> None:
        """Give the blocks back into which nobody writes any more."""
        with self._changed:
            free = [landing for landing in self._held if self._is_safe(landing)]
            self._held = [landing for landing in self._held if landing not in free]
            for landing in free:
                self._forget(landing)
        for landing in free:
            landing.reservation.release()

    def released(self, landing: Landing, flushed: bool) -> None:
        with self._changed:
            landing.forget_neighbour()
            landing.quiet = flushed
        if not flushed:
            landing.silent()
        self.look()

    def waits_for_process(self, landing: Landing) -> bool:
        with self._changed:
            return landing in self._held and not landing.neighbour_has_ended()

    @staticmethod
    def _is_safe(landing: Landing) -> bool:
        return landing.quiet or (landing.generation.closed and landing.neighbour_has_ended())

    def _watch(self) -> None:
        """Look after what is held until nothing is; at most one thread does so."""
        while True:
            self.look()
            self._retire()
            with self._changed:
                if not self._held and not self._retired:
                    self._watching = False
                    return
                self._changed.wait(_LOOK_S)

    def _retire(self) -> None:
        """Close the agents of silent writers, once the transfers of others are over."""
        now_s = time.monotonic()
        with self._changed:
            current, replaced = self._current, False
            silent = any(h.generation is current and now_s > (h.held_until_s or now_s) for h in self._held)
            if current is not None and silent:
                log.warning("a prefill worker is silent: the NIXL agent %s is replaced", current.agent.name)
                self._retired.append(current)
                self._current, replaced = None, True
            closing = [generation for generation in self._retired if generation.live == 0]
        for generation in closing:
            generation.agent.close()
            with self._changed:
                generation.closed = True
                self._retired.remove(generation)
        if replaced:
            try:
                self.open()
            except Exception as failure:  # Its errors have no common type. The next request tries again.
                log.warning("no NIXL agent can be made: %s", failure or type(failure).__name__)
