"""Waits for an API server that does not answer yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from disagg_operator.kube.errors import KubeError

log = logging.getLogger(__name__)
T = TypeVar("T")

_RETRY_S = 3.0


async def until_it_works(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Call until that raises no KubeError, and return the result."""
    while True:
        try:
            return await call()
        except KubeError as error:
            log.warning("%s: %s", what, error)
            await asyncio.sleep(_RETRY_S)
