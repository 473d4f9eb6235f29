"""Who computes a step: this process alone, or a group of ranks (disagg_worker.parallel).

The engine sees no device but this.
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
    """One batch (its tensors on the CPU) and what is done to the cache around it, in this order:
    `load` blocks whose KV came from another worker, `clear` blocks, compute, and `export` blocks
    layer by layer.
    """

    batch: Batch
    load: tuple[int, ...] = ()
    clear: tuple[int, ...] = ()
    export: tuple[int, ...] = ()


# Called with each layer in order, once its exported blocks are in host memory. Not always on the
# engine's thread, but never twice at once.
OnLayer = Callable[[int], None]


class Executor(Protocol):
    """Computes steps, one at a time."""

    def run(self, step: Step, on_layer: OnLayer | None = None) -> torch.Tensor:
        """Logits of `step.batch.last`, [rows, vocab] float32.

        `on_layer` was called for every layer before this returns.
        """

    def close(self) -> None:
        """Free what it holds beside memory (idempotent)."""


class LocalExecutor:
    """Implements Executor on this process's device: all of the network, or one rank's part."""

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
        finish = self.memory.export(layer, step.export)
        if self._copies is None:
            on_layer(layer)
        else:
            self._copies.add(finish, lambda: on_layer(layer))

    def close(self) -> None:
        if self._copies is not None:
            self._copies.close()


class _Copies:
    """A thread that waits for copies in order, so that the engine's thread goes on launching the
    next layer.
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
        """Until all that was added is done. Raises what went wrong."""
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
