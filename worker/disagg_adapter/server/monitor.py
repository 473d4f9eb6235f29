"""The adapter's eye on its engine: is it there, is it the same, does it get on with its work?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_adapter.engines.contract import Engine, EngineFault, Identity, NotReady, Readings, Unusable

log = logging.getLogger(__name__)
_MISSES = 2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the engine may be silent, in seconds."""

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
    """What is known of the engine."""

    identity: Identity | None = None
    """None while it does not serve."""
    readings: Readings = field(default_factory=Readings)
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
        self._nudge = asyncio.Event()

    def progress(self) -> None:
        """Note that the engine has just sent something."""
        self._progress_s = time.monotonic()

    def nudge(self) -> None:
        """Ask for one token soon.

        vLLM frees what a cancelled request held when its next step begins, and an idle engine takes
        none.
        """
        self._nudge.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._until_it_serves()
            await self._while_it_serves()

    async def _until_it_serves(self) -> None:
        started_s = time.monotonic()
        while True:
            try:
                identity = await self._engine.identify()
                async with asyncio.timeout(self._patience.start_s):
                    await self._engine.probe()
                self.health = Health(identity, await self._engine.read(), waits_for="")
                break
            except NotReady as waiting:
                self.health = Health(waits_for=str(waiting))
            except Unusable as error:
                if self.health.reason != error.reason:
                    log.error("the engine cannot be used: %s: %s", error.reason, error)
                self.health = Health(waits_for=str(error), reason=error.reason)
            except (EngineFault, TimeoutError) as fault:
                self.health = Health(waits_for=f"the first token: {str(fault) or 'it takes too long'}")
            if time.monotonic() - started_s > self._patience.start_s:
                self.health.hung = f"the engine did not serve within {self._patience.start_s:g} s"
            await asyncio.sleep(self._patience.poll_s)
        log.info("the engine serves after %.1f s: %s", time.monotonic() - started_s, self.health.identity)
        self.progress()
        self._changed()

    async def _while_it_serves(self) -> None:
        """Return when the engine does not answer, is another process, or is hung."""
        misses = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience.poll_s):
                    await self._nudge.wait()
            try:
                readings = await self._engine.read()
                misses = 0
            except EngineFault as fault:
                misses += 1
                if misses < _MISSES:
                    continue
                return self._lost(f"the engine does not answer: {fault}")
            if readings.started != self.health.readings.started:
                return self._lost("the engine was restarted")
            self.health.readings = readings
            if await self._hangs(readings):
                return self._lost(self.health.hung, hung=True)

    def _lost(self, why: str, *, hung: bool = False) -> None:
        log.warning("the engine serves no more: %s", why)
        self.health = Health(waits_for=why, hung=why if hung else "")
        self._changed()

    async def _hangs(self, readings: Readings) -> bool:
        """Return whether the engine has work, gets nothing done, and cannot make one token."""
        marks = (readings.steps_total, readings.prompt_tokens_total, readings.generated_tokens_total)
        if marks != self._marks or not self._has_work():
            self._marks = marks
            self.progress()
        silent_s = time.monotonic() - self._progress_s
        if silent_s < self._patience.probe_after_s and not self._nudge.is_set():
            return False
        self._nudge.clear()
        try:
            async with asyncio.timeout(self._patience.probe_s):
                await self._engine.probe()
        except (EngineFault, TimeoutError) as error:
            if silent_s < self._patience.probe_after_s:
                return False  # busy, and only nudged
            self.health.hung = (
                f"no progress for {silent_s:.0f} s, and no token within {self._patience.probe_s:g} s"
                f"{f': {error}' if str(error) else ''}"
            )
            return True
        self.progress()
        return False
