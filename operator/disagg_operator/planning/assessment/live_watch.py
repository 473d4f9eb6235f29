"""Watches the /metrics of running engines for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from disagg_operator.planning.assessment import engine_page
from disagg_operator.planning.assessment.bounded_http import BoundedHttp
from disagg_operator.planning.assessment.readings import AssessError, Readings, Snapshot, Watch
from disagg_wire.protocol import METRICS_PATH

# A look a second shows whether prefill disturbs decode; longer watches need not keep more of them.
_LEAST_STEP_S = 1.0
_MOST_LOOKS = 600
MOST_ENGINES = 64


def page_of(url: str) -> str:
    """Return the URL of the metrics of an engine, of which only the server may be given."""
    return url if url.endswith(METRICS_PATH) else url.rstrip("/").removesuffix("/v1") + METRICS_PATH


async def engine_at(http: BoundedHttp, url: str) -> str | None:
    """Return the name of the engine at a URL, or None if there is none. Raises AssessError."""
    status, text = await http.get(page_of(url))
    return engine_page.engine_of(text) if status == 200 else None


async def watch(
    http: BoundedHttp,
    urls: Sequence[str],
    engine: str,
    seconds: float,
    tpot_s: float,
    reach: Callable[[float], None],
) -> Readings:
    """Return what the engines told within some seconds.

    `reach` is called with the share of them that has passed. A look that fails is left out; an
    engine that fails in more than half of all looks is an error. Raises AssessError.
    """
    loop = asyncio.get_running_loop()
    step_s = max(_LEAST_STEP_S, seconds / _MOST_LOOKS)
    looks = max(1, round(seconds / step_s))
    failed: dict[str, tuple[int, AssessError]] = {}
    watched, began_s = Watch(engine, tpot_s), loop.time()
    for number in range(looks + 1):
        at_s = began_s + number * step_s
        await asyncio.sleep(max(0.0, at_s - loop.time()))
        at_s = loop.time()
        if number and at_s - watched.ended_s < step_s / 2:
            continue  # the machine was busy: the looks that were missed are not made up for
        for url, found in zip(urls, await asyncio.gather(*(_look(http, u, engine, at_s) for u in urls)), strict=True):
            if isinstance(found, AssessError):
                failed[url] = failed.get(url, (0, found))[0] + 1, found
            else:
                for worker, snapshot in found.items():
                    watched.take(f"{url}#{worker}" if worker else url, snapshot)
        reach(number / looks)
        for count, error in failed.values():
            if count > looks / 2 or number == 0:
                raise error
    return watched.readings()


async def _look(http: BoundedHttp, url: str, engine: str, at_s: float) -> dict[str, Snapshot] | AssessError:
    try:
        status, text = await http.get(page_of(url))
        if status != 200:
            return AssessError(f"{page_of(url)}: answers {status}")
        found = engine_page.parse(text, engine_page.ASSESSED[engine], at_s)
        return found or AssessError(f"{page_of(url)}: holds no metrics of {engine}")
    except AssessError as error:
        return error
