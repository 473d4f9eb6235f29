"""The engine: one thread that turns queued prompts and reserved KV into tokens.

The lock `_wake` guards the queues and the pool. It is held neither while the model computes nor
while a sink or a sender is called.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from disagg_protocol.errors import InvalidInput, NoCapacity
from disagg_protocol.events import ErrorEvent, EventSink
from disagg_protocol.sampling_params import SamplingParams
from disagg_wire import codes
from disagg_wire.room import Room
from disagg_worker.backend.interface import Backend
from disagg_worker.backend.select import select
from disagg_worker.engine import contract
from disagg_worker.engine.block_pool import State
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.handles import HeldBlocks, SequenceHandle
from disagg_worker.engine.isolation import isolated
from disagg_worker.engine.kv_store import KvStore
from disagg_worker.engine.masks import Masks
from disagg_worker.engine.prefill_limit import KnownRoom
from disagg_worker.engine.prefix_hash import PrefixNames
from disagg_worker.engine.queues import Queues
from disagg_worker.engine.sequence import Sequence
from disagg_worker.engine.settle import Settler, failure, out_of_memory
from disagg_worker.engine.setup import Plan, set_up
from disagg_worker.engine.step_watch import StepRecord, StepWatch
from disagg_worker.engine.steps import Outcome, Steps
from disagg_worker.engine.structured import Grammars
from disagg_worker.model import loader
from disagg_worker.model.checkpoint import OnProgress
from disagg_worker.values.engine_load import Load
from disagg_worker.values.layouts import ModelInfo

log = logging.getLogger(__name__)
# A step that takes so much longer than it should is late, and then stuck, not slow.
_LATE_S, _STUCK_S = 1.5, 60.0
_IDLE_WAIT_S, _STARVED_WAIT_S = 1.0, 0.1
# The weight of the latest decode step in the smoothed duration of decode steps.
_SMOOTHING = 0.2
_DRAINING = ErrorEvent(codes.DRAINING, "the worker is stopping", retryable=True)
ItemT = TypeVar("ItemT")


class TorchEngine:
    """Implements contract.Engine in torch.

    The constructor loads the model (raises ModelError); the engine then serves until `stop`. If
    `backend` is None, the one that the configuration names is used.
    """

    def __init__(
        self,
        folder: Path,
        config: EngineConfig,
        backend: Backend | None = None,
        on_progress: OnProgress | None = None,
        on_lost: Callable[[str], None] = lambda _: None,
        step_record: StepRecord | None = None,
    ) -> None:
        torch.set_num_threads(config.threads)
        self._config = config
        self._on_lost = on_lost
        self.on_starved: Callable[[], None] = lambda: None
        self._wake = threading.Condition()
        self._stopping = False
        model = loader.load_config(folder)
        backend = backend or select(config.device, config.threads, numerics=config.numerics)
        dtype = loader.pick_dtype(config.dtype, model, backend.device.type)
        max_len = min(config.max_model_len or model.max_positions, model.max_positions)
        machine = set_up(Plan(folder, config, model, backend, dtype, max_len), on_progress, self._lost)
        size = config.block_size_tokens
        self.layout, blocks = machine.layout, machine.blocks
        self.model = ModelInfo(
            config.name,
            machine.digest,
            model.architecture,
            model.vocab_size,
            max_len,
            model.eos_token_ids,
            model.bos_token_id,
        )
        self.cache = self._memory = machine.memory
        self._executor = machine.executor
        self._store = KvStore(
            blocks, config.eviction, config.host_cache_bytes if config.prefix_cache else 0, self._memory
        )
        self._names = PrefixNames(secrets.token_bytes(32), size) if config.prefix_cache else None
        grammars = Grammars(folder / "tokenizer.json", model.vocab_size, model.eos_token_ids)
        self._masks = Masks(grammars, self._nudge, config.mask_threads, config.mask_start_s, config.mask_token_s)
        self._steps = Steps(machine.executor, self._memory, self._store)
        self._queues = Queues(config, max_len, self._store, self._names)
        self._settler = Settler(self._wake, self._queues, max_len)
        self._next_key = 0
        self._steps_total = {"prefill": 0, "decode": 0}
        self._busy_s = 0.0
        self._decode_step_s = 0.0
        self._watch = StepWatch(step_record, compiles=bool(backend.decode_sizes))
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # ---- The interface: any thread may call it. ----

    def prefill(
        self,
        request_id: str,
        tokens: Many[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        sender: contract.KvSender | None,
        tenant: str = "",
        due_s: float | None = None,
    ) -> SequenceHandle:
        self._check_request(tokens, prompt_tokens, sampling)
        sequence = self._sequence(request_id, tokens, prompt_tokens, sampling, sink, tenant, hands_over=True)
        sequence.sender, sequence.due_s = sender, due_s
        return self._enter(sequence, self._queues.add_prefill)

    def reserve(
        self, request_id: str, tokens: int, max_total_tokens: int, prompt: Many[int] = (), tenant: str = ""
    ) -> HeldBlocks:
        names = self._queues.start_names(prompt, tenant)
        with self._wake:
            self._check_open()
            holding, held = self._queues.reserve(tokens, max_total_tokens, names)
        return HeldBlocks(self, request_id, tokens, max_total_tokens, holding, self._store, self._memory, held)

    def decode(
        self,
        reservation: contract.Reservation,
        tokens: Many[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        tenant: str = "",
    ) -> SequenceHandle:
        if not isinstance(reservation, HeldBlocks):
            raise InvalidInput("reservation: was not made by this engine")
        if reservation.ended:
            raise InvalidInput("reservation: has ended")
        if len(tokens) != reservation.tokens + 1 or not 1 <= prompt_tokens < len(tokens):
            raise InvalidInput(
                f"tokens: {len(tokens)}, the reservation is for {reservation.tokens} and the first token"
            )
        self._check_tokens(tokens)
        self._check_open()
        if min(prompt_tokens + sampling.max_new_tokens, self.model.max_model_len) > max(
            reservation.most_tokens, len(tokens)
        ):
            raise InvalidInput(f"max_new_tokens: {sampling.max_new_tokens} is more than was reserved for")
        sequence = self._sequence(
            reservation.request_id, tokens, prompt_tokens, sampling, sink, tenant, hands_over=False
        )

        def join(s: Sequence) -> None:
            if reservation.ended:
                raise InvalidInput("reservation: has ended")
            self._queues.join(s, reservation.holding, reservation.held_blocks)
            if not (reservation.in_region and self._memory.region_is_cache):
                self._steps.arrived(reservation.holding.blocks[reservation.held_blocks : reservation.n_blocks])
            reservation.ended = True

        return self._enter(sequence, join)

    def generate(
        self,
        request_id: str,
        tokens: Many[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        tenant: str = "",
        due_s: float | None = None,
        most_missing: int | None = None,
    ) -> SequenceHandle:
        self._check_request(tokens, prompt_tokens, sampling)
        admit: Callable[[Sequence], None] = self._queues.add_local
        if most_missing is not None:
            names = self._queues.start_names(tokens, tenant)
            with self._wake:  # Mostly it is not so, and then no grammar is begun.
                self._queues.check_rest(len(tokens), names, most_missing)
            admit = partial(self._queues.add_rest, names=names, most_missing=most_missing)
        sequence = self._sequence(request_id, tokens, prompt_tokens, sampling, sink, tenant, hands_over=False)
        sequence.due_s = due_s
        return self._enter(sequence, admit)

    def prepare(self, sampling: SamplingParams) -> None:
        if sampling.structured is not None:
            self._masks.compile(sampling.structured)

    def limit_prefill(self, room: Room) -> None:
        with self._wake:
            self._queues.decode_room = KnownRoom(room, time.monotonic())

    def load(self) -> Load:
        with self._wake:
            queues, pool = self._queues, self._store.pool
            waiting = [s for s in queues.waiting if s not in queues.prefilling]
            return Load(
                waiting_requests=len(waiting),
                waiting_tokens=sum(len(s.tokens) - s.computed for s in waiting),
                running_requests=len(queues.running) + len(queues.prefilling),
                blocks_total=pool.total,
                blocks_free=pool.count(State.FREE),
                blocks_used=pool.count(State.USED),
                blocks_leased=pool.count(State.LEASED),
                prompt_tokens_total=queues.prompt_tokens,
                rest_tokens_total=queues.rest_tokens,
                generated_tokens_total=self._settler.generated_tokens,
                steps_total=dict(self._steps_total),
                work_total=asdict(self._steps.work),
                cached_tokens_total=queues.cached_tokens,
                preemptions_total=queues.preemptions,
                silent_s=self._watch.silent_s(),
                late_prompts_total=self._settler.late_prompts,
                host_cache_bytes=self._store.host.held_bytes,
                room=queues.room(self._decode_step_s),
                prefill_limit_tokens=queues.prefill_limit_tokens(time.monotonic()),
                prefill_most_tokens=queues.prefill_most_tokens,
                step_seconds_total={
                    "forward": self._steps.forward_s,
                    "rest": max(0.0, self._busy_s - self._steps.forward_s),
                },
            )

    def alive(self) -> bool:
        return self._thread.is_alive() and not self._watch.is_late(_STUCK_S)

    def late(self) -> bool:
        return self._watch.is_late(_LATE_S)

    def stop(self, timeout_s: float) -> None:
        self._stopping = True
        self._nudge()
        self._thread.join(timeout_s)
        self._masks.close()
        self._executor.close()

    def _nudge(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _lost(self, message: str) -> None:
        """Stop because a rank has ended. The requests that are here may succeed elsewhere."""
        self._stopping = True
        self._nudge()
        self._on_lost(message)

    def cancel_sequence(self, sequence: Sequence) -> None:
        with self._wake:
            sequence.cancelled = True
            self._wake.notify_all()

    def release_sequence(self, sequence: Sequence) -> None:
        """Free the blocks of a sequence that is handed over, at once or as soon as its computation
        has stopped.
        """
        with self._wake:
            sequence.release_asked = True
            if not sequence.ended:
                sequence.cancelled = True
            self._queues.free_if_releasable(sequence)
            self._wake.notify_all()

    def release_reserved(self, reserved: HeldBlocks) -> None:
        with self._wake:
            if not reserved.ended:
                reserved.ended = True
                self._queues.unreserve(reserved.holding)
                self._wake.notify_all()

    def _check_open(self) -> None:
        if self._stopping:
            raise NoCapacity("the worker is stopping")

    def _check_tokens(self, tokens: Many[int]) -> None:
        if not tokens or min(tokens) < 0 or max(tokens) >= self.model.vocab_size:
            raise InvalidInput(f"tokens: must be ids from 0 to {self.model.vocab_size - 1}, and at least one")

    def _check_request(self, tokens: Many[int], prompt_tokens: int, sampling: SamplingParams) -> None:
        self._check_tokens(tokens)
        if not 1 <= prompt_tokens <= len(tokens):
            raise InvalidInput(f"prompt_tokens: {prompt_tokens} of {len(tokens)} tokens")
        if len(tokens) - prompt_tokens >= sampling.max_new_tokens:
            raise InvalidInput(f"max_new_tokens: {sampling.max_new_tokens} were emitted already")

    def _sequence(
        self,
        request_id: str,
        tokens: Many[int],
        prompt_tokens: int,
        sampling: SamplingParams,
        sink: EventSink,
        tenant: str,
        *,
        hands_over: bool,
    ) -> Sequence:
        s = Sequence(0, request_id, list(tokens), prompt_tokens, sampling, sink, hands_over, time.monotonic(), tenant)
        if sampling.structured is not None:
            s.grammar = self._masks.start(sampling.structured, tokens[prompt_tokens:])
        if self._names is not None:  # Tokens are hashed here and not under the lock.
            self._names.extend(s.names, s.tokens, tenant)
        return s

    def _enter(self, s: Sequence, admit: Callable[[Sequence], None]) -> SequenceHandle:
        with self._wake:
            self._check_open()
            self._next_key += 1
            s.key = self._next_key
            admit(s)
            self._wake.notify_all()
        return SequenceHandle(self, s)

    # ---- The loop: it runs on the engine's thread. ----

    def _loop(self) -> None:
        try:
            while self._turn():
                self._watch.turned()
        except Exception:
            log.exception("the engine's loop failed")
        with self._wake:
            self._stopping = True
            left = [*self._queues.waiting, *self._queues.running]
        for s in left:
            self._settler.end(s, _DRAINING)

    def _turn(self) -> bool:
        """Run the next steps, or wait for work. Returns False to stop."""
        if self._queues.starved:
            self.on_starved()
        with self._wake:
            if self._stopping:
                return False
            started_s = time.monotonic()
            over = self._settler.over()
            if not over:
                running = self._queues.take_decode()
                # While sequences run, each batch but the first waits for a decode step.
                pace = self._steps.pace.pace(self._decode_step_s if running else 0.0)
                work, wake_at_s = self._queues.take_prefill(started_s, pace)
                if not work and not running:
                    idle_s = _STARVED_WAIT_S if self._queues.starved else _IDLE_WAIT_S
                    self._wake.wait(idle_s if wake_at_s is None else max(0.0, wake_at_s - started_s))
                    return True
        if over:
            for s, event in over:
                self._settler.end(s, event)
            return True
        if work:
            with self._watch.prefill([(n, s.computed) for s, n in work]):
                self._step("prefill", work, self._steps.prefill, lambda item: item[0])
            self._queues.note_prefilled(work)
        if running:
            decode_started_s = time.monotonic()
            with self._watch.decode(len(running)):
                self._step("decode", running, self._steps.decode, lambda s: s)
            took_s = time.monotonic() - decode_started_s
            self._decode_step_s += (took_s - self._decode_step_s) * (_SMOOTHING if self._decode_step_s else 1.0)
        self._busy_s += time.monotonic() - started_s
        return True

    def _step(
        self,
        kind: str,
        items: list[ItemT],
        compute: Callable[[list[ItemT]], list[tuple[Sequence, Outcome]]],
        sequence: Callable[[ItemT], Sequence],
    ) -> None:
        """Run one step. A request that makes it fail costs no other one its tokens."""
        self._steps_total[kind] += 1
        step = isolated(items, compute, lambda part: max(part, key=lambda item: sequence(item).key), out_of_memory)
        for item, error in step.lost:
            log.error("request %s was lost in a %s step", sequence(item).request_id, kind, exc_info=error)
            self._settler.end(sequence(item), failure(error, alone=bool(step.done)))
        with self._wake:
            for item in step.done:
                self._queues.note_computed(sequence(item))
        alone = not all(isinstance(outcome, Exception) for _, outcome in step.outcomes)
        for s, outcome in step.outcomes:
            if not s.cancelled:
                self._settler.settle(s, outcome, alone=alone)
        with self._wake:
            self._queues.prefilling.clear()
