"""The masks of structured output, computed ahead of the steps and never on the engine's thread.

While a sequence waits for its mask, the others go on without it. All work with grammars is done on
a few threads of its own: what a library allocates on a thread it may keep for that thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from disagg_protocol.sampling_params import Structured
from disagg_worker.engine.structured import GrammarError, Grammars, GrammarState

log = logging.getLogger(__name__)
# A sequence whose last mask took longer than this is not computed before its next one is there. All
# others may be: their masks come while the network computes, or this much later.
QUICK_S = 0.005
Mask = npt.NDArray[np.bool_]


class Masks:
    """Computes masks. Any thread may call the methods.

    `on_ready` is called whenever a mask is there. A request may use `start_s` seconds of a
    processor, and `token_s` more for each token.
    """

    def __init__(
        self, grammars: Grammars, on_ready: Callable[[], None], threads: int, start_s: float, token_s: float
    ) -> None:
        self._grammars = grammars
        self.on_ready = on_ready
        self.start_s, self.token_s = start_s, token_s
        self._pool = ThreadPoolExecutor(threads, "grammars")

    def compile(self, wanted: Structured) -> None:
        """Compile a grammar, and wait for it. Raises InvalidInput."""
        self._pool.submit(self._grammars.compile, wanted).result()

    def start(self, wanted: Structured, emitted: Sequence[int]) -> AheadMask:
        """Return the masks of a sequence, of which that after `emitted` is begun."""
        mask = AheadMask(self, wanted)
        mask.ask(emitted)
        return mask

    def state(self, wanted: Structured) -> GrammarState:
        """Return the state of a grammar before the first token. Raises InvalidInput."""
        return self._grammars.start(wanted)

    def submit(self, work: Callable[[], None]) -> None:
        """Do some work soon; nothing is done any more once these masks are closed."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            log.debug("a mask was asked for after the end")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class AheadMask:
    """The masks of one sequence, one after the other. Implements sequence.TokenMask."""

    def __init__(self, masks: Masks, wanted: Structured) -> None:
        self._masks = masks
        self._wanted = wanted
        self._lock = threading.Lock()
        self._there = threading.Event()
        self._state: GrammarState | None = None
        self._asked, self._asked_s = -1, 0.0
        self._found: tuple[int, Mask | Exception] = (-1, GrammarError("no mask was asked for"))
        self._used_s = 0.0
        self._was_quick = False

    @property
    def ready(self) -> bool:
        return self._found[0] == self._asked

    @property
    def quick(self) -> bool:
        return self._was_quick and time.monotonic() - self._asked_s < QUICK_S

    def ask(self, emitted: Sequence[int]) -> None:
        self._there.clear()
        self._asked, self._asked_s = len(emitted), time.monotonic()
        if self.ready:
            self._there.set()
        else:
            tokens = list(emitted)
            self._masks.submit(lambda: self._compute(tokens))

    def wait(self, timeout_s: float) -> bool:
        return self._there.wait(timeout_s) if timeout_s > 0 else self.ready

    def allowed(self, emitted: Sequence[int]) -> Mask:
        """Implement TokenMask.allowed; what was not asked for is computed here and now.

        Raises GrammarError and InvalidInput.
        """
        if self._found[0] != len(emitted):
            self._compute(list(emitted))
        found = self._found[1]
        if isinstance(found, Exception):
            raise found
        return found

    def _compute(self, emitted: list[int]) -> None:
        with self._lock:
            if self._found[0] < len(emitted):
                found = self._next(emitted)
                self._was_quick = time.monotonic() - self._asked_s < QUICK_S
                # In this order: once it is found, the next one may be asked for.
                self._there.set()
                self._found = len(emitted), found
        self._masks.on_ready()

    def _next(self, emitted: list[int]) -> Mask | Exception:
        if isinstance(previous := self._found[1], Exception) and self._found[0] >= 0:
            return previous
        began_s = time.thread_time()
        try:
            self._state = self._state or self._masks.state(self._wanted)
            mask = self._state.allowed(emitted)
        except Exception as error:
            return error
        self._used_s += time.thread_time() - began_s
        if self._used_s > self._masks.start_s + self._masks.token_s * len(emitted):
            return GrammarError(f"it takes too much computing: {self._used_s:.1f} s for {len(emitted)} tokens")
        return mask
