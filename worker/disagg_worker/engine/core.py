"""The engine: one thread that turns queued prompts and reserved KV into tokens. Implements engine.api.Engine.

Locking: `_wake` guards the queues and the pool; it is held neither while the model computes nor while a sink or sender is called.
Admission counts growth (decode_scheduler), so a running sequence never lacks a block and nothing is ever preempted.
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

from disagg_worker.backend.select import select
from disagg_worker.engine import api
from disagg_worker.engine.block_pool import BlockPool, State, blocks_for
from disagg_worker.engine.cache_memory import CacheMemory
from disagg_worker.engine.config import EngineConfig
from disagg_worker.engine.decode_scheduler import Capacity, blocks_to_hold, check_length
from disagg_worker.engine.handles import HeldBlocks, SequenceHandle
from disagg_worker.engine.prefill_scheduler import PrefillRules, Waiting, plan_prefill
from disagg_worker.engine.sequence import Sequence
from disagg_worker.engine.steps import Outcome, Steps
from disagg_worker.model import loader
from disagg_worker.model.decoder import Decoder

log = logging.getLogger(__name__)
# A step longer than this means the loop is stuck, not slow.
_STUCK_S = 300.0
_IDLE_WAIT_S = 1.0
_INTERNAL = api.ErrorEvent("internal", "the engine failed on this request; see the worker's log", retryable=True)
_POISONED = api.ErrorEvent("internal", "the model's logits are not finite", retryable=False)
_DRAINING = api.ErrorEvent("draining", "the worker is stopping", retryable=True)
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
        self._steps = Steps(Decoder(model, weights.tensors, select(config.device, config.threads)), self._memory)
        self._rules = PrefillRules(config.max_batch_tokens, config.prefill_wait_s, config.prefill_utilisation, config.max_running)
        self._wake = threading.Condition()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._prefilling: set[Sequence] = set()
        self._committed = 0
        self._next_key = 0
        self._stopping = False
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._steps_total = {"prefill": 0, "decode": 0}
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
            self._check_request(tokens, prompt_tokens, sampling)
            check_length(len(tokens), self._capacity())
            if blocks_for(len(tokens), self._config.block_size_tokens) > self._pool.total:
                raise api.InvalidInput(f"tokens: {len(tokens)} need more KV blocks than the {self._pool.total} of this worker")
            self._check_place()
            sequence = self._sequence(request_id, tokens, prompt_tokens, sampling, sink, hands_over=True)
            sequence.sender = sender
            self._waiting.append(sequence)
            self._wake.notify_all()
        return SequenceHandle(self, sequence)

    def reserve(self, request_id: str, tokens: int, max_total_tokens: int) -> HeldBlocks:
        with self._wake:
            self._check_open()
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
            if len(tokens) != reservation.tokens + 1 or not 1 <= prompt_tokens < len(tokens):
                raise api.InvalidInput(f"tokens: {len(tokens)}, the reservation is for {reservation.tokens} and the first token")
            self._check_tokens(tokens)
            self._check_open()
            most_tokens = min(prompt_tokens + sampling.max_new_tokens, self.model.max_model_len)
            if most_tokens > len(reservation.blocks) * self._config.block_size_tokens:
                raise api.InvalidInput(f"max_new_tokens: {sampling.max_new_tokens} is more than was reserved for")
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
            self._check_request(tokens, prompt_tokens, sampling)
            self._check_place()
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
            waiting = [s for s in self._waiting if s not in self._prefilling]
            return api.Load(
                waiting_requests=len(waiting),
                waiting_tokens=sum(len(s.tokens) - s.computed for s in waiting),
                running_requests=len(self._running) + len(self._prefilling),
                blocks_total=self._pool.total,
                blocks_free=self._pool.count(State.FREE),
                blocks_used=self._pool.count(State.USED),
                blocks_leased=self._pool.count(State.LEASED),
                prompt_tokens_total=self._prompt_tokens,
                generated_tokens_total=self._generated_tokens,
                steps_total=dict(self._steps_total),
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
            self._free_if_releasable(sequence)
            self._wake.notify_all()

    def release_reserved(self, reserved: HeldBlocks) -> None:
        with self._wake:
            if reserved.state is State.LEASED:
                reserved.state = State.FREE
                self._pool.free(reserved.blocks, State.LEASED)
                self._committed -= 1
                self._wake.notify_all()

    # ---- under the lock ----

    def _check_open(self) -> None:
        if self._stopping:
            raise api.NoCapacity("the worker is stopping")

    def _check_place(self) -> None:
        self._check_open()
        if len(self._waiting) >= self._config.max_waiting:
            raise api.NoCapacity(f"{len(self._waiting)} requests wait, max_waiting is {self._config.max_waiting}")

    def _check_tokens(self, tokens: Many[int]) -> None:
        if not tokens or min(tokens) < 0 or max(tokens) >= self.model.vocab_size:
            raise api.InvalidInput(f"tokens: must be ids from 0 to {self.model.vocab_size - 1}, and at least one")

    def _check_request(self, tokens: Many[int], prompt_tokens: int, sampling: api.SamplingParams) -> None:
        self._check_tokens(tokens)
        if not 1 <= prompt_tokens <= len(tokens):
            raise api.InvalidInput(f"prompt_tokens: {prompt_tokens} of {len(tokens)} tokens")
        if len(tokens) - prompt_tokens >= sampling.max_new_tokens:
            raise api.InvalidInput(f"max_new_tokens: {sampling.max_new_tokens} were emitted already")

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

    def _free_if_releasable(self, sequence: Sequence) -> None:
        if sequence.releasable and sequence.blocks:
            self._pool.free(sequence.blocks, sequence.state)
            sequence.blocks = []

    def _over(self) -> list[tuple[Sequence, api.EndEvent | api.ErrorEvent]]:
        """What was cancelled, or arrived from another worker with its last token."""
        over: list[tuple[Sequence, api.EndEvent | api.ErrorEvent]] = []
        over += [(s, _CANCELLED) for s in (*self._waiting, *self._running) if s.cancelled]
        for s in self._running:
            if not s.cancelled and (reason := s.finish_reason(self.model.max_model_len)) is not None:
                over.append((s, api.EndEvent(reason)))
        return over

    def _take_prefill(self, now_s: float) -> tuple[list[tuple[Sequence, int]], float | None]:
        """The next prefill batch with its blocks, and when to ask again if there is none now."""
        waiting = [Waiting(s.key, len(s.tokens) - s.computed, s.queued_at_s, s.computed > 0) for s in self._waiting]
        plan = plan_prefill(waiting, now_s, self._rules)
        by_key = {s.key: s for s in self._waiting}
        work: list[tuple[Sequence, int]] = []
        for key, n in plan.batch:
            sequence = by_key[key]
            if not sequence.blocks:
                needed = blocks_for(len(sequence.tokens), self._config.block_size_tokens)
                if needed > self._pool.count(State.FREE):
                    break  # who came later may not overtake, or the long would starve; a release wakes the loop
                sequence.blocks, sequence.state = self._pool.allocate(needed, State.USED), State.USED
            work.append((sequence, n))
        self._prefilling = {s for s, _ in work}
        return work, plan.wake_at_s

    # ---- the loop: the engine's thread ----

    def _loop(self) -> None:
        try:
            while self._turn():
                pass
        except Exception:
            log.exception("the engine's loop failed")
        with self._wake:
            self._stopping = True
            left = [*self._waiting, *self._running]
        for s in left:
            self._end(s, _DRAINING)

    def _turn(self) -> bool:
        """Compute what there is to compute, or wait for it. False: stop."""
        with self._wake:
            if self._stopping:
                return False
            over = self._over()
            if not over:
                now_s = time.monotonic()
                work, wake_at_s = self._take_prefill(now_s)
                running = list(self._running)
                if not work and not running:
                    self._wake.wait(_IDLE_WAIT_S if wake_at_s is None else max(0.0, wake_at_s - now_s))
                    return True
        if over:
            for s, event in over:
                self._end(s, event)
            return True
        self._step_started_s = time.monotonic()
        if work:
            self._step("prefill", [s for s, _ in work], partial(self._steps.prefill, work))
            self._prompt_tokens += sum(n for _, n in work)
        if running:
            self._step("decode", running, partial(self._steps.decode, running))
        self._step_started_s = None
        return True

    def _step(self, kind: str, sequences: list[Sequence], compute: Callable[[], list[tuple[Sequence, Outcome]]]) -> None:
        """Run one step; an exception fails that step's requests and nothing else."""
        self._steps_total[kind] += 1
        try:
            outcomes = compute()
        except Exception:
            log.exception("a %s step of %d sequences failed", kind, len(sequences))
            for s in sequences:
                self._end(s, _INTERNAL)
        else:
            for s, outcome in outcomes:
                if not s.cancelled:
                    self._settle_guarded(s, outcome)
        with self._wake:
            self._prefilling.clear()

    def _settle_guarded(self, s: Sequence, outcome: Outcome) -> None:
        try:
            self._settle(s, outcome)
        except Exception:
            log.exception("request %s failed after its step", s.request_id)
            self._end(s, _INTERNAL)

    def _settle(self, s: Sequence, outcome: Outcome) -> None:
        """Pass a sampled token on and decide what becomes of its request."""
        if isinstance(outcome, Exception):
            log.error("request %s failed", s.request_id, exc_info=outcome)
            self._end(s, _POISONED if isinstance(outcome, ArithmeticError) else _INTERNAL)
            return
        s.tokens.append(outcome.token)
        self._generated_tokens += 1
        event = api.TokenEvent(s.emitted - 1, outcome.token, outcome.logprob, outcome.top_logprobs)
        self._tell(s, event)
        reason = s.finish_reason(self.model.max_model_len)
        if reason is not None:
            if s.sender is not None:
                s.sender.abort(_FINISHED)
            self._end(s, api.EndEvent(reason))
        elif s.hands_over:
            if s.sender is not None:
                s.sender.commit(event)
            self._end(s, api.EndEvent("prefilled"))
        elif s in self._prefilling:
            with self._wake:
                self._waiting.remove(s)
                self._prefilling.discard(s)
                self._running.append(s)

    def _end(self, s: Sequence, event: api.EndEvent | api.ErrorEvent) -> None:
        """The one way out of the engine for a sequence. Blocks that a sender reads stay leased until it releases them."""
        with self._wake:
            if s.ended:
                return
            s.ended = True
            self._prefilling.discard(s)
            if s in self._waiting:
                self._waiting.remove(s)
            if s in self._running:
                self._running.remove(s)
            if not s.hands_over:
                self._committed -= 1
            elif s.blocks:
                self._pool.convert(s.blocks, s.state, State.LEASED)
                s.state = State.LEASED
            self._free_if_releasable(s)
        self._tell(s, event)

    @staticmethod
    def _tell(s: Sequence, event: api.Event) -> None:
        """A sink or sender that raises fails its own request; it must not cost the others theirs."""
        try:
            if s.sender is not None and isinstance(event, api.ErrorEvent):
                s.sender.abort(event)
        except Exception:
            log.exception("the sender of request %s failed", s.request_id)
        try:
            s.sink(event)
        except Exception:
            log.exception("the sink of request %s failed", s.request_id)
            s.cancelled = True
