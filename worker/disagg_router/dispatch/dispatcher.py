"""The loop that drives one request over its attempts.

It chooses workers, tries them, waits for room, and goes on with the next pair after a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from functools import partial

from disagg_router.admission.asker import Asker
from disagg_router.admission.queues import Queues
from disagg_router.admission.waiting_queue import AdmissionQueue, LeftModel
from disagg_router.dispatch.attempt import Attempt, Finished, Patience
from disagg_router.dispatch.promises import cannot_go_on, weakened
from disagg_router.dispatch.request_state import RequestState, Token
from disagg_router.dispatch.retry_budget import RetryBudget
from disagg_router.dispatch.tail_times import Tails
from disagg_router.dispatch.trace import Trace
from disagg_router.errors import ApiError, AttemptFailed, NoRoom
from disagg_router.metrics import Metrics
from disagg_router.objectives import Objectives
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.pair_choice import Choice, scarce_pool
from disagg_router.workers.table import WorkerTable
from disagg_wire import codes, series

log = logging.getLogger(__name__)
# Errors that are the answer to the client: nothing has failed over.
_ANSWERS = (codes.INVALID_REQUEST, codes.PROMPT_TOO_LONG)


class ModelReplaced(Exception):
    """Raised when requests for a name go to other weights by now, and the client has got nothing.

    The request may start anew, with the tokenizer of these weights.
    """


class _Visit:
    """A request's place in the queue of its model, and the workers that it need not ask again
    before it has waited.

    What it has waited for workers to come counts neither as waiting for room nor as its own time.
    """

    def __init__(self, queue: AdmissionQueue, asker: Asker, arrived_s: float, held_s: float, timeout_s: float) -> None:
        self.queue = queue
        self.turn = queue.turn(asker)
        self.arrived_s = arrived_s
        self.since_s = arrived_s + held_s
        self.deadline_s = self.since_s + timeout_s
        self.held_s = held_s
        self.full: set[str] = set()
        self.returning = False
        self.ranked = False

    def token(self) -> None:
        """Note that a token is out: a later wait starts anew, and the request is never late."""
        self.since_s, self.held_s, self.returning = time.monotonic(), 0.0, True
        if self.turn.due_s is not None:
            self.turn = replace(self.turn, due_s=None)

    def held(self, seconds: float) -> None:
        """Note that there were no workers for so long."""
        self.held_s += seconds
        self.since_s += seconds
        self.deadline_s += seconds


@contextlib.contextmanager
def _held(visit: _Visit, trace: Trace) -> Iterator[None]:
    """Count the time until the block ends as that of a request for which there are no workers."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        held_s = time.monotonic() - began_s
        visit.held(held_s)
        trace.held_s += held_s


class Dispatcher:
    """The dispatcher of all requests of a router.

    `deadlines` gives the time by which first tokens are due; None if they have no deadline. Decode
    prefills a prompt itself of which it lacks at most `local_up_to_tokens`.
    """

    def __init__(
        self,
        client: WorkerClient,
        table: WorkerTable,
        queues: Queues,
        metrics: Metrics,
        timeout_s: float,
        patience: Patience,
        deadlines: Objectives | None = None,
        local_up_to_tokens: int = 0,
        retries: RetryBudget | None = None,
    ) -> None:
        self._client = client
        self._table = table
        self._queues = queues
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._patience = patience
        self._deadlines = deadlines
        self._local_up_to_tokens = local_up_to_tokens
        self.retries = retries or RetryBudget()
        self._offenders = RetryBudget()
        self._tails = Tails()

    async def run(self, state: RequestState, trace: Trace, arrived_s: float) -> AsyncGenerator[Token | Finished]:
        """Yield the tokens in order, then Finished, for a request that arrived at monotonic
        `arrived_s`.

        Raises ApiError when every attempt has failed or a limit of the queue was reached, and
        ModelReplaced.
        """
        for retries in (self.retries, self._offenders):
            retries.arrived(time.monotonic())
        self._tails.budget.arrived(time.monotonic())
        # The adapters of a model have its workers, and so its queue.
        with self._queues.queue((state.identity.parent or state.identity.name, state.identity.digest)) as queue:
            visit = _Visit(queue, state.asker, arrived_s, trace.held_s, self._timeout_s)
            try:
                async with contextlib.aclosing(self._attempts(state, trace, visit)) as items:
                    async for item in items:
                        yield item
            finally:
                queue.over(visit.turn, len(state.prompt) + len(state.emitted))

    async def _attempts(self, state: RequestState, trace: Trace, visit: _Visit) -> AsyncGenerator[Token | Finished]:
        if not visit.queue.idle:
            self._rank(visit, state)
            if not visit.queue.enter(visit.turn):
                await self._wait(visit, state, visit.queue.scarce(), trace)
        while True:
            choice: Choice | None = None
            try:
                trace.clock.chooses(time.monotonic())
                choice = self._choose(state, visit.full, trace)
                trace.attempts = state.failures + 1
                trace.clock.attempt(time.monotonic())
                weaker = weakened(state, choice)
                settled = partial(visit.queue.settled, visit.turn)
                self._rank(visit, state, choice)
                async with contextlib.aclosing(
                    self.attempt(
                        state, trace, choice, visit.deadline_s, settled, visit.turn.due_s, self._local_up_to_tokens
                    )
                ) as items:
                    async for item in items:
                        yield item
                        if isinstance(item, Finished):
                            return
                        weaker = self._weakened(state, trace, weaker)
                        visit.token()
            except (NoRoom, AttemptFailed) as failure:
                if (reason := state.complete) is not None:
                    yield Finished(reason)
                    return
                trace.note_failure(failure)
                trace.clock.failed(time.monotonic())
                if isinstance(failure, AttemptFailed):
                    self._failed(state, failure)
                    await self._pause(state, visit, failure)
                else:
                    await self._refused(visit, state, choice, failure, trace)
            state.next_attempt()
            if time.monotonic() > visit.deadline_s:
                raise ApiError(504, f"not finished within {self._timeout_s:g} s", code="deadline_exceeded")

    def attempt(
        self,
        state: RequestState,
        trace: Trace,
        choice: Choice,
        deadline_s: float,
        room_changed: Callable[[], None] | None = None,
        due_s: float | None = None,
        local_up_to_tokens: int = 0,
    ) -> AsyncGenerator[Token | Finished]:
        """Return the items of one attempt on one choice of workers, until monotonic `deadline_s`.

        Iterating over them raises NoRoom or AttemptFailed.
        """
        return Attempt(
            self._client,
            self._table,
            choice,
            state,
            trace,
            self._patience,
            deadline_s,
            room_changed or self._queues.wake,
            due_s,
            local_up_to_tokens,
            self._tails,
        ).items()

    def _rank(self, visit: _Visit, state: RequestState, choice: Choice | None = None) -> None:
        """Set when the first token is due, from the part of the prompt that is probably not cached.

        This is done once: from then on the chosen worker counts as having all of the prompt.
        """
        if self._deadlines is None or visit.ranked:
            return
        visit.ranked = True
        if choice is None:
            uncached = self._table.uncached_tokens(state.prompt, state.tenant, state.identity)
        else:
            uncached = choice.computed_tokens
        limit_s = self._deadlines.ttft_limit_s(uncached)
        if limit_s is not None:
            visit.turn = replace(visit.turn, due_s=visit.arrived_s + limit_s, alone_s=self._deadlines.alone_s(uncached))

    def _weakened(self, state: RequestState, trace: Trace, weaker: frozenset[str]) -> frozenset[str]:
        """Count the promises that a continued request cannot be kept, once each."""
        for what in sorted(weaker - trace.weakened):
            log.warning("request=%s goes on with a weaker promise: %s", state.request_id, what)
            self._metrics.weakened.labels(what).inc()
        trace.weakened |= weaker
        return frozenset()

    def _choose(self, state: RequestState, full: set[str], trace: Trace) -> Choice:
        """Return the workers to ask. Raises NoRoom, or ApiError if waiting for others is no use."""
        choice = self._table.choose(
            identity=state.identity,
            single_token=state.single_token,
            full=full,
            tokens=[*state.prompt, *state.emitted],
            tenant=state.tenant,
            resumes_format=state.resumes_format,
            roll=state.roll,
        )
        if choice is None and cannot_go_on(state, self._table.workers(), trace.decode or trace.prefill):
            message = (
                f"a worker was lost after {len(state.emitted)} tokens, and no other can continue an output that must"
                " match a format; send the request again"
            )
            raise ApiError(503, message, code="not_resumable")
        if choice is None:
            pool = scarce_pool(self._table.workers(), identity=state.identity, full=full)
            raise NoRoom(pool, "no worker has room or is ready")
        if choice.prefill is None and any(
            w.incarnation in full and w.serves("prefill") and w.offers(state.identity) for w in self._table.workers()
        ):
            # Prefill workers exist but are full. That is load and not absence, so the request waits
            # for them.
            raise NoRoom("prefill", "every prefill worker is full")
        return choice

    async def _refused(
        self,
        visit: _Visit,
        state: RequestState,
        choice: Choice | None,
        refusal: NoRoom,
        trace: Trace,
    ) -> None:
        """Mark the worker that is full, and return when the request may try again.

        That is at once while there are others to ask, and otherwise when it is this request's turn.
        """
        if refusal.broke_off:
            self._metrics.failovers.labels(refusal.reason).inc()
        worker = None if choice is None else choice.prefill if refusal.pool == "prefill" else choice.decode
        if worker is not None and worker.incarnation not in visit.full:
            visit.full.add(worker.incarnation)
            return
        visit.full.clear()
        self._rank(visit, state)
        await self._wait(visit, state, refusal.pool, trace)

    async def _wait(self, visit: _Visit, state: RequestState, pool: str, trace: Trace) -> None:
        """Return when the request may try again. Raises ModelReplaced."""
        started_s = time.monotonic()
        trace.clock.enter(f"queue_{pool}", started_s)
        try:
            if self._has_workers(state):
                with contextlib.suppress(LeftModel), self._partners_come(visit, state, trace) as come:
                    await visit.queue.wait(
                        visit.turn,
                        pool,
                        started_s - visit.held_s if come else visit.since_s,
                        deadline_s=math.inf if come else visit.deadline_s,
                        returning=visit.returning,
                        size_bytes=state.size_bytes,
                        leaves=lambda: not self._has_workers(state),
                        max_wait_s=self._queues.hold.max_wait_s if come else None,
                    )
            if not self._has_workers(state):
                trace.clock.enter(series.HOLD, time.monotonic())
                await self._hold(visit, state, trace)
            visit.returning = True
        finally:
            trace.queue_s += time.monotonic() - started_s

    def _has_workers(self, state: RequestState) -> bool:
        """Return whether the request is to wait for the workers of its model.

        Otherwise they are gone, or requests for this name go to others and it can be one of these.
        """
        catalogue = self._table.catalogue
        return catalogue.has(state.identity) if state.shown else catalogue.goes_to(state.identity)

    @contextlib.contextmanager
    def _partners_come(self, visit: _Visit, state: RequestState, trace: Trace) -> Iterator[bool]:
        """Yield whether a request that has just come waits for workers of one role that are still
        to come. It is then held as if there were none of the other role either.
        """
        come = not state.emitted and not self._table.catalogue.serves(state.identity.name)
        with _held(visit, trace) if come else contextlib.nullcontext():
            yield come

    async def _hold(self, visit: _Visit, state: RequestState, trace: Trace) -> None:
        """Wait until there are workers with the weights of the request, or with others for its name
        if it can begin anew. Raises ModelReplaced in the latter case, and if nobody will serve it.
        """
        visit.queue.gone(visit.turn)
        name = state.identity.name

        def ready() -> bool:
            if not state.shown and not self._table.names.known(name, time.monotonic()):
                raise ModelReplaced(name)
            return self._has_workers(state) or (not state.shown and bool(self._table.catalogue.current(name)))

        deadline_s = visit.deadline_s if state.emitted else math.inf
        with _held(visit, trace):
            since_s = time.monotonic() - visit.held_s
            await self._queues.hold.until(
                ready, name, state.size_bytes, since_s, deadline_s=deadline_s, returning=visit.returning,
                asker=state.asker,
            )  # fmt: skip
        if not self._has_workers(state):
            raise ModelReplaced(name)

    async def _pause(self, state: RequestState, visit: _Visit, failure: AttemptFailed) -> None:
        """Wait for the budget of retries, if this is not the first one of the request.

        Requests on which engines fail have one of their own, so that they delay no others.
        """
        now_s = time.monotonic()
        retries = self._offenders if failure.reason == codes.REQUEST_FAILED else self.retries
        if state.failures > 1 and (wait_s := retries.wait_s(now_s)) > 0:
            self._metrics.retry_waits.inc()
            try:
                await asyncio.sleep(max(0.0, min(wait_s, visit.deadline_s - now_s)))
            except asyncio.CancelledError:
                retries.give_back()  # The client has left.
                raise

    def _failed(self, state: RequestState, failure: AttemptFailed) -> None:
        """Record the workers to avoid. Raises ApiError when no attempt is left."""
        now_s = time.monotonic()
        for key in failure.blame:
            self._table.breaker.failed(key, now_s)
            if failure.reason == "worker_lost":
                self._table.lost(key)
        log.warning(
            "request=%s attempt=%d failed=%s: %s", state.request_id, state.failures + 1, failure.reason, failure
        )
        if failure.retryable or failure.reason not in _ANSWERS:
            self._metrics.failovers.labels(failure.reason).inc()
        if not failure.retryable or not state.failed():
            raise failure.for_client()
