"""The adapter's eye on its engine: is it there, is it the same, does it get on with its work?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_adapter.engines.contract import Engine, EngineFault, Identity, NotReady, Unusable
from disagg_wire import codes
from disagg_wire.engine_metrics.readings import Readings

log = logging.getLogger(__name__)
_MISSES = 2
# Looks at an engine that gets on, after which what was cancelled is surely gone: the steps that the
# first one sees may have been before the cancellation.
_LOOKS_AFTER_CANCEL = 2
_BETWEEN_PROBES_S = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """The times for which the engine may be silent, in seconds."""

    poll_s: float
    """Between two looks."""
    probe_after_s: float
    """Without progress, while it has work, before it is asked for one token."""
    probe_s: float
    """For that token."""
    start_s: float
    """Until it serves for the first time."""


@dataclass(slots=True)
class Health:
    """The known state of the engine."""

    identity: Identity | None = None
    """None while it does not serve."""
    readings: Readings = field(default_factory=Readings)
    read_s: float = -math.inf
    """When the readings were asked for, on the monotonic clock."""
    waits_for: str = "the engine has not been asked yet"
    """What is missing before it serves."""
    reason: str = ""
    """A word for why it can never serve as it is; "" if it can."""
    hung: str = ""
    """Why it counts as hung; "" if it does not."""


class Monitor:
    """Watches one engine. `changed` is called when it begins or ceases to serve."""

    def __init__(
        self, engine: Engine, patience: Patience, has_work: Callable[[], bool], changed: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._patience = patience
        self._has_work = has_work
        self._changed = changed
        self.health = Health()
        self._progress_s = time.monotonic()
        self._marks: tuple[float, ...] = ()
        self._misses = 0
        self._look_now = asyncio.Event()
        self._looked = asyncio.Event()  # at the end of the next look
        self._looks_after_cancel = 0
        self._probed_s = -math.inf
        # The start of the engine that hung, until another one or this one serves.
        self._hung_start = ""

    def progress(self) -> None:
        """Note that the engine has just sent something."""
        self._progress_s = time.monotonic()

    def nudge(self) -> None:
        """Note that a request was cancelled: an engine that is idle is asked for one token soon.

        vLLM frees what a cancelled request held when its next step begins, and an idle engine takes
        none.
        """
        self._looks_after_cancel = _LOOKS_AFTER_CANCEL

    async def look(self) -> None:
        """Look at the engine now, because a request has failed on it; return when that is done.

        So a router that is told of the failure does not ask an engine that is gone once more.
        """
        if self.health.identity is None:
            return
        self._look_now.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.poll_s):
                await self._looked.wait()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._until_it_serves()
            await self._while_it_serves()

    async def _until_it_serves(self) -> None:
        started_s = time.monotonic()
        while True:
            try:
                await self._try_to_serve()
                break
            except NotReady as waiting:
                self._waits(str(waiting))
            except Unusable as error:
                if self.health.reason != error.reason:
                    log.error("the engine cannot be used: %s: %s", error.reason, error)
                self._waits(str(error), error.reason)
            except (EngineFault, TimeoutError) as fault:
                self._waits(f"the first token: {str(fault) or 'it takes too long'}")
            except Exception as error:
                # What an engine answers while it starts must not end the watch.
                text = f"the engine's answers are not understood: {error!r}"
                if self.health.waits_for != text:
                    log.exception("the engine's answers are not understood")
                self._waits(text)
            if time.monotonic() - started_s > self._patience.start_s:
                self.health.hung = f"the engine did not serve within {self._patience.start_s:g} s"
            await asyncio.sleep(self._patience.poll_s)
        log.info("the engine serves after %.1f s: %s", time.monotonic() - started_s, self.health.identity)
        self.progress()
        self._changed()

    async def _try_to_serve(self) -> None:
        identity = await self._engine.identify()
        if self._hung_start != identity.started:
            self.health.hung = ""
        self.health.waits_for, self.health.reason = "the first token", ""
        async with asyncio.timeout(self._patience.start_s):
            await self._engine.probe()
        asked_s = time.monotonic()
        self.health = Health(identity, await self._engine.read(), asked_s, waits_for="")
        self._hung_start = ""

    def _waits(self, text: str, reason: str = "") -> None:
        # A hung engine stays one until it serves or is another: what it answers in between says
        # nothing.
        self.health = Health(waits_for=text, reason=reason, hung=self.health.hung)

    async def _while_it_serves(self) -> None:
        """Return when the engine does not answer, is another process, or is hung."""
        self._misses = 0
        while self.health.identity is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_look_s()):
                    await self._look_now.wait()
            self._look_now.clear()
            looked, self._looked = self._looked, asyncio.Event()
            try:
                await self._look_once()
            finally:
                looked.set()

    async def _look_once(self) -> None:
        asked_s = time.monotonic()
        try:
            readings = await self._engine.read()
        except Exception as error:  # a page that cannot be read is no answer either
            # An engine that sends tokens lives, however long it takes over its metrics.
            self._misses = 0 if self._progress_s > asked_s else self._misses + 1
            if self._misses >= _MISSES or (isinstance(error, EngineFault) and error.is_gone):
                self._lost(f"the engine does not answer: {error}")
            return
        self._misses = 0
        if readings.started != self.health.readings.started:
            self._lost("the engine was restarted")
            return
        self.health.readings, self.health.read_s = readings, asked_s
        if await self._hangs(readings):
            self._lost(self.health.hung, hung=True)

    def _next_look_s(self) -> float:
        """Return the time to the next look: the usual one, or less if a probe is due before."""
        due_s = self._progress_s + self._patience.probe_after_s - time.monotonic()
        return min(self._patience.poll_s, max(due_s, self._patience.poll_s / 10))

    def _lost(self, why: str, *, hung: bool = False) -> None:
        log.warning("the engine serves no more: %s", why)
        if hung:
            self._hung_start = self.health.readings.started
        self.health = Health(waits_for=why, hung=why if hung else "")
        self._changed()

    async def _hangs(self, readings: Readings) -> bool:
        """Return whether the engine has work, gets nothing done, and cannot make one token."""
        moved = self._moved(readings)
        if moved or not self._has_work():
            self.progress()
        silent_s = time.monotonic() - self._progress_s
        if silent_s >= self._patience.probe_after_s:
            return await self._probe_fails(silent_s)
        await self._after_cancel(moved)
        return False

    def _moved(self, readings: Readings) -> bool:
        """Return whether the engine's counters are others than at the last look."""
        counters = (readings.steps_total, readings.prompt_tokens_total, readings.generated_tokens_total)
        marks = tuple(-1.0 if math.isnan(value) else value for value in counters)
        before, self._marks = self._marks, marks
        return marks != before

    async def _probe_fails(self, silent_s: float) -> bool:
        """Ask for one token, and return whether the engine counts as hung."""
        patience, began_s = self._patience, time.monotonic()
        left_s = max(patience.poll_s, patience.probe_after_s + patience.probe_s - silent_s)
        try:
            async with asyncio.timeout(left_s):
                await self._engine.probe()
        except Exception as error:
            why = f": {error}" if str(error) else ""
            refused = isinstance(error, EngineFault) and error.code == codes.NO_CAPACITY
            if refused and silent_s < patience.probe_after_s + patience.probe_s:
                return False  # it may be busy; the next look asks again
        else:
            self.progress()
            return False
        if await self._got_on_since(began_s):
            return False  # the token waited behind much work
        total_s = time.monotonic() - self._progress_s
        self.health.hung = f"no progress for {total_s:.0f} s, and no token for the adapter itself{why}"
        return True

    async def _got_on_since(self, began_s: float) -> bool:
        with contextlib.suppress(Exception):  # what does not answer does not get on
            async with asyncio.timeout(self._patience.poll_s):
                if self._moved(await self._engine.read()):
                    self.progress()
        return self._progress_s > began_s

    async def _after_cancel(self, moved: bool) -> None:
        """Make an idle engine take a step, so that it frees what cancelled requests held."""
        if self._looks_after_cancel == 0:
            return
        if moved:
            self._looks_after_cancel -= 1
        elif time.monotonic() - self._probed_s >= _BETWEEN_PROBES_S:
            self._looks_after_cancel = 0
            self._probed_s = time.monotonic()
            with contextlib.suppress(EngineFault, TimeoutError):
                async with asyncio.timeout(self._patience.probe_s):
                    await self._engine.probe()
