"""The terms of an operator, which works whenever it leads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from disagg_operator.controller.elector import Leadership
from disagg_operator.kube.errors import KubeError

log = logging.getLogger(__name__)


async def work_in_terms(
    leadership: Leadership,
    work: Callable[[], Coroutine[Any, Any, None]],
    *,
    leads: Callable[[bool], None],
    forget: Callable[[], None],
    close: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Work in each term, until the work ends by itself. Raises what has ended it.

    `leads` is told when a term begins, and before its work is stopped; `close` is awaited after
    that. What was known is forgotten at the end of a term, because others may act before the next
    one, but kept where this process ends: it is still to be saved.
    """
    while True:
        await leadership.gained()
        leads(True)
        term = asyncio.create_task(work(), name="term")
        lost = asyncio.create_task(leadership.lost(), name="lost")
        try:
            await asyncio.wait((term, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leads(False)
            ended = term.done()
            for task in (term, lost):
                task.cancel()
            await asyncio.gather(term, lost, return_exceptions=True)
            if close is not None:
                await close()
        if ended:
            term.result()
            return
        forget()
        log.warning("this operator does not lead any more")


async def after_restores(
    leadership: Leadership, resync: Callable[[], Awaitable[None]], pauses_s: Sequence[float] = (0.0, 30.0, 60.0)
) -> None:
    """List everything at once when the API server's data turn out to be those of a backup.

    And twice more: the watches go on from versions that the store has not reached again, and tell
    nothing until they hear that, which takes a minute.
    """
    while True:
        await leadership.restored()
        for pause_s in pauses_s:
            await asyncio.sleep(pause_s)
            try:
                await resync()
            except KubeError as error:
                log.warning("after a restore: %s", error)
