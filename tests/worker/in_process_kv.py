"""A KvSender in the place of the TCP one that copies KV between two engines of one process."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from disagg_protocol.events import ErrorEvent, Event, EventSink, TokenEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.contract import DecodeHandle, Engine, PrefillHandle, Reservation
from disagg_worker.values.kv_blocks import KvBlocks


class InProcessKvSender:
    """A KvSender that copies each reported block at once.

    On commit, the decode engine takes the reservation over. `reported` counts each (layer, block).
    """

    def __init__(
        self,
        decode: Engine,
        reservation: Reservation,
        tokens: Sequence[int],
        prompt_tokens: int,
        sampling: SamplingParams,
    ) -> None:
        self._decode = decode
        self._reservation = reservation
        self._request = (tokens, prompt_tokens, sampling)
        self._lock = threading.Lock()
        self._prefill: PrefillHandle | None = None
        self._over = False
        self.sink: EventSink | None = None
        self.handle: DecodeHandle | None = None
        self.reported: Counter[tuple[int, int]] = Counter()
        self.aborted: ErrorEvent | None = None

    def attach(self, handle: PrefillHandle) -> None:
        """Set the prefill whose blocks are to be released; it may have ended already."""
        with self._lock:
            self._prefill = handle
            over = self._over
        if over:
            handle.release()

    @property
    def reads_region(self) -> bool:
        return False

    @property
    def held_blocks(self) -> int:
        return 0

    def layer_ready(self, layer: int, first_block: int, blocks: KvBlocks) -> None:
        theirs = self._reservation.blocks(first_block, len(blocks.ids))
        with blocks.reading(layer) as source, theirs.writing(layer) as target:
            content = memoryview(b"".join(source))
            for view in target:
                view[:], content = content[: len(view)], content[len(view) :]
        self.reported.update((layer, i) for i in range(first_block, first_block + len(blocks.ids)))

    def commit(self, first_token: TokenEvent) -> None:
        tokens, prompt_tokens, sampling = self._request
        if self.sink is None:
            raise RuntimeError("nobody listens")
        self.handle = self._decode.decode(
            self._reservation, [*tokens, first_token.token], prompt_tokens, sampling, self.sink
        )
        self._release()

    def abort(self, error: ErrorEvent) -> None:
        self.aborted = error
        self._reservation.release()
        self._release()

    def _release(self) -> None:
        with self._lock:
            self._over = True
            handle = self._prefill
        if handle is not None:
            handle.release()


class ThreadedKvSender(InProcessKvSender):
    """One that copies on a thread of its own, as a group of ranks needs it: the thread on which it
    is told of a layer takes part in each copy.
    """

    def __init__(self, *more: Any) -> None:
        super().__init__(*more)
        self._steps: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            step()

    def layer_ready(self, layer: int, first_block: int, blocks: KvBlocks) -> None:
        self._steps.put(partial(super().layer_ready, layer, first_block, blocks))

    def commit(self, first_token: TokenEvent) -> None:
        self._steps.put(partial(super().commit, first_token))
        self._steps.put(None)

    def abort(self, error: ErrorEvent) -> None:
        self._steps.put(partial(super().abort, error))
        self._steps.put(None)


class _FirstToken:
    """The sink of the prefill: it passes the token on, and the end only if it ends the request."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def __call__(self, event: Event) -> None:
        if isinstance(event, TokenEvent | ErrorEvent) or event.finish_reason != "prefilled":
            self._sink(event)


def generate_remote(
    prefill: Engine,
    decode: Engine,
    request_id: str,
    tokens: Sequence[int],
    prompt_tokens: int,
    sampling: SamplingParams,
    sink: EventSink,
    kind: type[InProcessKvSender] = InProcessKvSender,
) -> InProcessKvSender:
    """Do the work of Engine.generate with two engines: reserve, prefill, copy, decode.

    Raises NoCapacity or InvalidInput.
    """
    total = prompt_tokens + sampling.max_new_tokens
    reservation = decode.reserve(request_id, len(tokens), total)
    sender = kind(decode, reservation, tokens, prompt_tokens, sampling)
    sender.sink = sink
    try:
        sender.attach(prefill.prefill(request_id, tokens, prompt_tokens, sampling, _FirstToken(sink), sender))
    except Exception:
        reservation.release()
        raise
    return sender
