"""The executors of steps: this process alone, or a group of ranks (see leader).

The engine reaches devices only through an executor.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from disagg_worker.backend.interface import Batch, to_device
from disagg_worker.execution.cache_memory import CacheMemory
from disagg_worker.model.decoder import Decoder

# A copy of one layer's KV from device to host takes milliseconds.
_COPY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """One batch, whose tensors are on the CPU, and the blocks of the cache that are to be treated
    before and after it.

    The order is: load, clear, compute, and export layer by layer.
    """

    batch: Batch
    load: tuple[int, ...] = ()
    """Blocks whose KV came from another worker."""
    clear: tuple[int, ...] = ()
    """Blocks to set to zero."""
    export: tuple[int, ...] = ()
    """Blocks whose KV is to be sent."""


# Called with each layer in order, once other threads may read its exported blocks. Not every call
# is on the engine's thread, but no two calls overlap.
OnLayer = Callable[[int], None]


class Executor(Protocol):
    """Computes one step at a time."""

    def run(self, step: Step, on_layer: OnLayer | None = None) -> torch.Tensor:
        """Return the logits of `step.batch.last`, [rows, vocab] float32.

        `on_layer` has been called for every layer before this returns.
        """

    def close(self) -> None:
        """Release everything but memory (idempotent)."""


class LocalExecutor:
    """Implements Executor on this process's device, for the whole network or one rank's part."""

    def __init__(self, network: Decoder, memory: CacheMemory) -> None:
        self.network, self.memory = network, memory
        self._device = network.backend.device
        self._program = network.backend.decode_program(network, memory.tensor)
        self._copies = _Copies() if self._device.type == "cuda" else None

    def run(self, step: Step, on_layer: OnLayer | None = None) -> torch.Tensor:
        with torch.inference_mode():
            self.memory.load(step.load)
            self.memory.clear(step.clear)
            if step.batch.tables is not None and self._program is not None:
                return self._program(step.batch, self.memory.tensor)
            batch = to_device(step.batch, self._device)
            if on_layer is None:
                return self.network.forward(batch, self.memory.tensor)
            logits = self.network.forward(
                batch, self.memory.tensor, lambda layer: self._computed(layer, step, on_layer)
            )
            if self._copies is not None:
                self._copies.wait()
            return logits

    def _computed(self, layer: int, step: Step, on_layer: OnLayer) -> None:
        finish = self.memory.export(layer, step.export) or self.memory.computed()
        if self._copies is None:
            on_layer(layer)
        else:
            self._copies.add(finish, lambda: on_layer(layer))

    def close(self) -> None:
        if self._copies is not None:
            self._copies.close()


class _Copies:
    """A thread that waits for copies in order, while the engine's thread goes on to launch the next
    layer.
    """

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[tuple[Callable[[], None] | None, Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        self._changed = threading.Condition()
        self._open = 0
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name="kv-copies", daemon=True).start()

    def add(self, finish: Callable[[], None] | None, then: Callable[[], None]) -> None:
        with self._changed:
            self._open += 1
        self._items.put((finish, then))

    def wait(self) -> None:
        """Wait until everything that was added is done. Raises its failure, or TimeoutError."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._open, _COPY_TIMEOUT_S)
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if not done:
            raise TimeoutError(f"KV was not copied to the host within {_COPY_TIMEOUT_S:g} s")

    def close(self) -> None:
        self._items.put(None)

    @torch.inference_mode()
    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            finish, then = item
            failure: BaseException | None = None
            try:
                if finish is not None:
                    finish()
                then()
            except Exception as error:
                failure = error
            with self._changed:
                self._open -= 1
                self._failure = self._failure or failure
                self._changed.notify_all()
