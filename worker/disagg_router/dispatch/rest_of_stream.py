"""The tokens of a choice whose answer another router has begun.

First come those that a worker has kept, and what it still makes. If that ends before the answer
does, the request goes on as after the loss of a worker: from the tokens that are known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable

from disagg_router.dispatch.attempt import Finished
from disagg_router.dispatch.dispatcher import Dispatcher
from disagg_router.dispatch.request_state import ProtocolViolation, RequestState, Token
from disagg_router.dispatch.trace import Trace
from disagg_router.errors import ApiError, AttemptFailed
from disagg_router.workers.client import Line, WorkerClient
from disagg_router.workers.kept_streams import KeptChoice
from disagg_router.workers.table import WorkerTable
from disagg_wire import codes, series

log = logging.getLogger(__name__)
_PREFILLED = "prefilled"


def gone() -> ApiError:
    """Return the refusal of a client whose stream cannot be resumed."""
    message = "what was made for this request is not kept any more; send it again without Last-Event-ID"
    return ApiError(410, message, code="not_resumable")


class Resumed:
    """The rest of one choice.

    `has_all` says whether all that its client has got was seen by now. Without a kept stream it
    begins anew, which makes the same tokens from the same seed.
    """

    def __init__(
        self,
        client: WorkerClient,
        table: WorkerTable,
        dispatcher: Dispatcher,
        kept: KeptChoice | None,
        stall_s: float,
        has_all: Callable[[], bool],
    ) -> None:
        self._client = client
        self._table = table
        self._dispatcher = dispatcher
        self._kept = kept
        self._stall_s = stall_s
        self._has_all = has_all

    async def run(self, state: RequestState, trace: Trace, arrived_s: float) -> AsyncGenerator[Token | Finished]:
        """Yield all tokens of the choice from its first one on, then Finished.

        Raises ApiError, and ModelReplaced.
        """
        if self._kept is not None:
            async with contextlib.aclosing(self._read(self._kept, state, trace)) as items:
                async for item in items:
                    yield item
                    if isinstance(item, Finished):
                        return
        if (reason := state.complete) is not None:
            yield Finished(reason)
            return
        if not self._has_all():
            raise gone()
        state.next_attempt()
        async with contextlib.aclosing(self._dispatcher.run(state, trace, arrived_s)) as items:
            async for item in items:
                yield item

    async def _read(self, kept: KeptChoice, state: RequestState, trace: Trace) -> AsyncGenerator[Token | Finished]:
        """Yield what is kept, and what is made of it, up to its end or to where it breaks off.

        Raises ApiError for an error that every worker would answer with.
        """
        stream, read_on = kept.stream, False
        worker = trace.decode = stream.worker
        trace.path, trace.attempts, state.epoch = series.RESUMED, stream.epoch + 1, stream.epoch
        wants_logprobs = state.sampling.get("logprobs") is not None
        try:
            with self._table.busy(worker, requests=1):
                async with (
                    self._table.lifelines.stream(worker) as life,
                    self._client.kept(stream) as lines,
                    contextlib.aclosing(lines),
                ):
                    while (line := await self._next(lines)) is not None:
                        life.heard_s = asyncio.get_running_loop().time()
                        for token in self._line(kept, state, line):
                            if wants_logprobs and token.logprob is None and self._has_all():
                                raise gone()  # They were known to a worker that is gone.
                            yield token
                        if (reason := state.finished) is not None:
                            yield Finished(reason)
                            return
        except AttemptFailed as failure:
            if not failure.retryable:
                raise failure.for_client() from None
            log.info("request=%s goes on elsewhere: %s: %s", state.request_id, failure.reason, failure)
        except (ProtocolViolation, KeyError, TypeError, ValueError) as violation:
            log.warning("request=%s: %s garbles what it keeps: %s", state.request_id, worker.pod, violation)
        except (GeneratorExit, asyncio.CancelledError):
            read_on = not state.over
            raise
        finally:
            if not read_on and state.finished is None:
                self._client.stop_soon(worker, stream.name, stream.run, stream.epoch)

    async def _next(self, lines: AsyncGenerator[Line]) -> Line | None:
        try:
            async with asyncio.timeout(self._stall_s):
                return await anext(lines, None)
        except TimeoutError:
            raise AttemptFailed("no event for too long", reason="stalled") from None

    def _line(self, kept: KeptChoice, state: RequestState, line: Line) -> list[Token]:
        kind = line["type"]
        if kind == "token":
            known = kept.events.get(line["index"])
            # An event that says more, of a worker that has made the token.
            return state.token(known if known is not None and known.get("token") == line["token"] else line)
        if kind == "end" and line["finish_reason"] != _PREFILLED:
            state.end(line["finish_reason"])
        if kind == "error":
            code = str(line["code"])
            retryable = line.get("retryable") is not False or code == codes.CANCELLED
            raise AttemptFailed(str(line["message"]), reason=code, retryable=retryable)
        return []
