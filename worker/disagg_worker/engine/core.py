"""The engine: one thread that turns queued prompts and reserved KV into tokens. Implements engine.api.Engine.

Locking: `_wake` guards the queues and the pool; it is not held while the model computes. Sinks and senders must not block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import partial
from pathlib import Path

import torch

from disagg_worker.engine import api
from disagg_worker.engine.batching import decode_batch, prefill_batch
from disagg_worker.engine.block_pool import BlockPool, State, blocks_for
from disagg_worker.engine.cache_memory import CacheMemory
from disagg_worker.engine.config import EngineConfig
from disagg_worker.engine.decode_scheduler import Capacity, blocks_to_hold, check_length
from disagg_worker.engine.handles import HeldBlocks, SequenceHandle
from disagg_worker.engine.prefill_scheduler import Waiting, plan_prefill
from disagg_worker.engine.sampler import sample
from disagg_worker.engine.sequence import Sequence
from disagg_worker.model import loader
from disagg_worker.model.llama import LlamaModel

log = logging.getLogger(__name__)
# A step longer than this means the loop is stuck, not slow.
_STUCK_S = 300.0
_IDLE_WAIT_S = 1.0
_INTERNAL = api.ErrorEvent("internal", "the engine failed on this request; see the worker's log", retryable=True)
_CANCELLED = api.ErrorEvent("cancelled", "cancelled", retryable=False)
_FINISHED = api.ErrorEvent("finished", "the first token ended the request", retryable=False)


class TorchEngine:
    """Loads the model at construction (raises ModelError), then serves until `stop`."""

    def __init__(self, folder: Path, config: EngineConfig) -> None:
        torch.set_num_threads(config.threads)
        self._config = config
        model = loader.load_config(folder)
        dtype = loader.pick_dtype(config.dtype, model)
        weights = loader.load_weights(folder, model, dtype)
        self._network = LlamaModel(model, weights.tensors)
        max_len = min(config.max_model_len or model.max_positions, model.max_positions)
        self.layout = api.KvLayout(
            model.layers,
            model.kv_heads,
            model.head_dim,
            config.block_size_tokens,
            str(dtype).removeprefix("torch."),
            dtype.itemsize,
        )
        self.model = api.ModelInfo(
            config.name, weights.digest, model.architecture, model.vocab_size, max_len, model.eos_token_ids, model.bos_token_id
        )
        blocks = config.kv_cache_bytes // (self.layout.bytes_per_token * config.block_size_tokens)
        if blocks < blocks_for(max_len, config.block_size_tokens):
            raise api.ModelError(
                f"kv_cache_bytes: {config.kv_cache_bytes} hold {blocks * config.block_size_tokens} tokens, max_model_len is {max_len}"
            )
        self._pool = BlockPool(blocks)
        self._memory = CacheMemory(self.layout, blocks, dtype)
        self._wake = threading.Condition()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._computing = 0
        self._committed = 0
        self._next_key = 0
        self._stopping = False
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._step_started_s: float | None = None
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # ---- the door: any thread ----

    def prefill(
        self,
        request_id: str,
        tokens: Many[int],
        prompt_tokens: int,
        sampling: api.SamplingParams,
        sink: api.EventSink,
        sender: api.KvSender | None,
    ) -> SequenceHandle:
        with self._wake:
            self._check_tokens(tokens)
            check_length(len(tokens), self._capacity())
            if blocks_for(len(tokens), self._config.block_size_tokens) > self._pool.total:
                raise api.InvalidInput(f"tokens: {len(tokens)} need more KV blocks than the {self._pool.total} of this worker")
            if len(self._waiting) >= self._config.max_waiting:
                raise api.NoCapacity(f"{len(self._waiting)} requests wait, max_waiting is {self._config.max_waiting}")
            sequence = self._sequence(request_id, tokens, prompt_tokens, sampling, sink, hands_over=True)
            sequence.sender = sender
            self._waiting.append(sequence)
            self._wake.notify_all()
        return SequenceHandle(self, sequence)

    def reserve(self, request_id: str, tokens: int, max_total_tokens: int) -> HeldBlocks:
        with self._wake:
            n = blocks_to_hold(tokens, max_total_tokens, self._capacity())
            held = HeldBlocks(self, request_id, tokens, self._pool.allocate(n, State.LEASED), self._memory)
            self._committed += 1
            return held

    def decode(
        self,
        reservation: api.Reservation,
        tokens: Many[int],
        prompt_tokens: int,
        sampling: api.SamplingParams,
        sink: api.EventSink,
    ) -> SequenceHandle:
        if not isinstance(reservation, HeldBlocks):
            raise api.InvalidInput("reservation: was not made by this engine")
        with self._wake:
            if reservation.state is not State.LEASED:
                raise api.InvalidInput("reservation: has ended")
            self._check_tokens(tokens)
            sequence = self._sequence(reservation.request_id, tokens, prompt_tokens, sampling, sink, hands_over=False)
            self._pool.convert(reservation.blocks, State.LEASED, State.USED)
            sequence.blocks, sequence.state = reservation.blocks, State.USED
            reservation.state = State.USED
            sequence.computed = len(tokens) - 1
            self._running.append(sequence)
            self._wake.notify_all()
        return SequenceHandle(self, sequence)

    def generate(
        self, request_id: str, tokens: Many[int], prompt_tokens: int, sampling: api.SamplingParams, sink: api.EventSink
    ) -> SequenceHandle:
        with self._wake:
            self._check_tokens(tokens)
            if len(self._waiting) >= self._config.max_waiting:
                raise api.NoCapacity(f"{len(self._waiting)} requests wait, max_waiting is {self._config.max_waiting}")
            total = prompt_tokens + sampling.max_new_tokens
            n = blocks_to_hold(len(tokens), total, self._capacity())
            sequence = self._sequence(request_id, tokens, prompt_tokens, sampling, sink, hands_over=False)
            sequence.blocks, sequence.state = self._pool.allocate(n, State.USED), State.USED
            self._committed += 1
            self._waiting.append(sequence)
            self._wake.notify_all()
        return SequenceHandle(self, sequence)

    def load(self) -> api.Load:
        with self._wake:
            waiting = [s for s in self._waiting if not s.computed]
            return api.Load(
                waiting_requests=max(0, len(self._waiting) - self._computing),
                waiting_tokens=sum(len(s.tokens) for s in waiting),
                running_requests=len(self._running) + self._computing,
                blocks_total=self._pool.total,
                blocks_free=self._pool.count(State.FREE),
                blocks_used=self._pool.count(State.USED),
                blocks_leased=self._pool.count(State.LEASED),
                prompt_tokens_total=self._prompt_tokens,
                generated_tokens_total=self._generated_tokens,
            )

    def alive(self) -> bool:
        started_s = self._step_started_s
        return self._thread.is_alive() and (started_s is None or time.monotonic() - started_s < _STUCK_S)

    def stop(self, timeout_s: float) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(timeout_s)

    def cancel_sequence(self, sequence: Sequence) -> None:
        with self._wake:
            sequence.cancelled = True
            self._wake.notify_all()

    def release_sequence(self, sequence: Sequence) -> None:
        """Free a handed-over sequence's blocks, at once or as soon as its computation has stopped."""
        with self._wake:
            sequence.release_asked = True
            if not sequence.ended:
                sequence.cancelled = True
            self._free_if_done(sequence)
            self._wake.notify_all()

    def release_reserved(self, reserved: HeldBlocks) -> None:
        with self._wake:
            if reserved.state is State.LEASED:
                reserved.state = State.FREE
                self._pool.free(reserved.blocks, State.LEASED)
                self._committed -= 1
                self._wake.notify_all()

    # ---- under the lock ----

    def _check_tokens(self, tokens: Many[int]) -> None:
        if not tokens or min(tokens) < 0 or max(tokens) >= self.model.vocab_size:
            raise api.InvalidInput(f"tokens: must be ids from 0 to {self.model.vocab_size - 1}, and at least one")

    def _capacity(self) -> Capacity:
        c = self._config
        free = self._pool.count(State.FREE)
        return Capacity(c.block_size_tokens, self._pool.total, free, self._committed, c.max_running, self.model.max_model_len)

    def _sequence(
        self,
        request_id: str,
        tokens: Many[int],
        prompt_tokens: int,
        sampling: api.SamplingParams,
        sink: api.EventSink,
        *,
        hands_over: bool,
    ) -> Sequence:
        self._next_key += 1
        return Sequence(self._next_key, request_id, list(tokens), prompt_tokens, sampling, sink, hands_over, time.monotonic())

    def _free_if_done(self, sequence: Sequence) -> None:
        if sequence.ended and sequence.blocks and (sequence.release_asked or not sequence.hands_over):
            self._pool.free(sequence.blocks, sequence.state)
            sequence.blocks = []

    def _end(self, sequence: Sequence, event: api.EndEvent | api.ErrorEvent) -> None:
        """The one way out of the engine for a sequence. Handed-over blocks stay leased until their release."""
        with self._wake:
            if sequence.ended:
                return
            sequence.ended = True
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            if sequence in self._running:
                self._running.remove(sequence)
            if not sequence.hands_over:
                self._committed -= 1
            elif sequence.blocks:
                self._pool.convert(sequence.blocks, sequence.state, State.LEASED)
                sequence.state = State.LEASED
            self._free_if_done(sequence)
        if sequence.sender is not None and isinstance(event, api.ErrorEvent):
            sequence.sender.abort(event)
        sequence.sink(event)

    def _take_work(self) -> tuple[list[tuple[Sequence, int]], list[Sequence], float | None]:
        """The next prefill batch, the sequences to decode, and when to look again if there is neither."""
        for s in [s for s in (*self._waiting, *self._running) if s.cancelled]:
            self._end(s, _CANCELLED)
        c = self._config
        waiting = [Waiting(s.key, len(s.tokens) - s.computed, s.queued_at_s, s.computed > 0) for s in self._waiting]
        now_s = time.monotonic()
        plan = plan_prefill(waiting, now_s, c.max_batch_tokens, c.prefill_wait_s, c.prefill_utilisation, c.max_running)
        by_key = {s.key: s for s in self._waiting}
        work = []
        for key, n in plan.batch:
            sequence = by_key[key]
            if not sequence.blocks:
                try:
                    sequence.blocks = self._pool.allocate(blocks_for(len(sequence.tokens), c.block_size_tokens), State.USED)
                except api.NoCapacity:
                    continue  # until blocks come back; a release wakes the loop
                sequence.state = State.USED
            work.append((sequence, n))
        self._computing = len(work)
        wait_s = None if plan.wake_at_s is None else max(0.0, plan.wake_at_s - now_s)
        return work, list(self._running), wait_s

    # ---- the loop: the engine's thread ----

    def _loop(self) -> None:
        while True:
            with self._wake:
                work, running, wait_s = self._take_work()
                if not work and not running:
                    if self._stopping:
                        break
                    self._wake.wait(_IDLE_WAIT_S if wait_s is None else wait_s)
                    continue
                if self._stopping:
                    break
            self._step_started_s = time.monotonic()
            if work:
                self._guarded([s for s, _ in work], partial(self._prefill_step, work))
            if running:
                self._guarded(running, partial(self._decode_step, running))
            self._step_started_s = None
        error = api.ErrorEvent("draining", "the worker is stopping", retryable=True)
        for s in [*self._waiting, *self._running]:
            self._end(s, error)

    def _guarded(self, sequences: list[Sequence], step: Callable[[], None]) -> None:
        """Run one step; an exception fails that step's requests and nothing else."""
        try:
            with torch.inference_mode():
                step()
        except Exception:
            log.exception("a step of %d sequences failed", len(sequences))
            for s in sequences:
                self._end(s, _INTERNAL)

    def _prefill_step(self, work: list[tuple[Sequence, int]]) -> None:
        size = self._config.block_size_tokens
        ready: list[tuple[Sequence, int, int]] = []
        for s, n in work:
            stop = s.computed + n
            whole = blocks_for(stop, size) if stop == len(s.tokens) else stop // size
            if s.sender is not None and whole > s.computed // size:
                ready.append((s, s.computed // size, whole))

        def on_layer(layer: int) -> None:
            for s, first, stop in ready:
                if s.sender is not None:
                    s.sender.layer_ready(layer, first, [self._memory.view(layer, b) for b in s.blocks[first:stop]])

        logits = self._network.forward(prefill_batch(work, size), self._memory.tensor, on_layer)
        row = 0
        for s, n in work:
            s.computed += n
            self._prompt_tokens += n
            if s.computed == len(s.tokens):
                self._computed_prompt(s, logits[row])
                row += 1

    def _computed_prompt(self, s: Sequence, logits: torch.Tensor) -> None:
        token = self._emit(s, logits)
        if token is None:
            return
        if s.hands_over:
            if s.sender is not None:
                s.sender.commit(token)
            self._end(s, api.EndEvent("prefilled"))
            return
        with self._wake:
            self._waiting.remove(s)
            self._running.append(s)

    def _decode_step(self, running: list[Sequence]) -> None:
        logits = self._network.forward(decode_batch(running, self._config.block_size_tokens), self._memory.tensor)
        for row, s in enumerate(running):
            s.computed += 1
            if not s.cancelled:
                self._emit(s, logits[row])

    def _emit(self, s: Sequence, logits: torch.Tensor) -> api.TokenEvent | None:
        """Sample, tell the sink, end the request if that token ends it. None: it has ended."""
        try:
            picked = sample(logits, s.sampling, s.tokens, s.prompt_tokens)
        except ArithmeticError as error:
            self._end(s, api.ErrorEvent("internal", str(error), retryable=False))
            return None
        s.tokens.append(picked.token)
        self._generated_tokens += 1
        event = api.TokenEvent(s.emitted - 1, picked.token, picked.logprob, picked.top_logprobs)
        s.sink(event)
        reason = s.finish_reason(self.model.max_model_len)
        if reason is None:
            return event
        if s.sender is not None:
            s.sender.abort(_FINISHED)
        self._end(s, api.EndEvent(reason))
        return None
