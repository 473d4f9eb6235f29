"""Operators that are killed at their writes, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.integration.edited_resource import QUICK
from tests.integration.faulty_api import Asked, FaultyApi, refusal
from tests.integration.operator_process import Cluster, Operator, eventually, operator

_WAIT_S = 90.0


async def _yes() -> bool:
    return True


async def killed_at_writes(
    api: FaultyApi,
    cluster: Cluster,
    folder: Path,
    every: int,
    *,
    carried_out: bool,
    done: Callable[[], Awaitable[bool]] = _yes,
    **settings: str,
) -> int:
    """Kill the operator at its n-th write, again and again, until one has nothing left to write.

    That is one that rests once all is `done`. Returns the number of operators that died.
    """
    for died in range(60):
        async with operator(api.server, folder, cluster.namespace, **QUICK, **settings) as running:
            before = len(api.writes)

            async def at_a_write(asked: Asked, running: Operator = running, before: int = before) -> bool:
                if asked.writes and len(api.writes) - before >= every and running.process.returncode is None:
                    running.process.kill()
                    return False
                return True

            async def instead(asked: Asked, at: Any = at_a_write) -> web.Response | None:
                return None if await at(asked) else refusal(500)

            api.without_faults()
            if carried_out:
                api.tells = at_a_write
            else:
                api.answer = instead

            async def over(running: Operator = running) -> bool:
                writes, resyncs = len(api.writes), api.resyncs

                async def died_or_listed() -> bool:
                    return running.process.returncode is not None or api.resyncs >= resyncs + 4

                await eventually("it dies or lists everything", died_or_listed, _WAIT_S)
                if running.process.returncode is not None:
                    return True
                return len(api.writes) == writes and await done()

            await eventually("it dies or rests", over, _WAIT_S)
            died_now = running.process.returncode is not None
        if not died_now:
            api.without_faults()
            return died
    raise AssertionError("the operators never come to an end")
