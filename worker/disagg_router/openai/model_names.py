"""The names that clients ask for, and what answers under each."""

from __future__ import annotations

import random
import time
from typing import Any

from starlette.types import Receive

from disagg_router.admission.asker import Asker
from disagg_router.errors import ApiError
from disagg_router.openai.pumped_response import while_connected
from disagg_router.router import Router
from disagg_router.text.tokenizer import Text
from disagg_router.workers.catalogue import Model

_MAX_NAMES_SHOWN = 16


class ModelNames:
    """The models of a router by name."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def cards(self) -> dict[str, dict[str, Any]]:
        """Return the objects of /v1/models by name; that of a LoRA adapter names its model."""
        return {
            name: {"id": name, "object": "model", "created": self._router.created_s, "owned_by": "disagg"}
            | ({"parent": parent} if parent else {})
            for name, parent in self._router.table.names.listed().items()
        }

    async def find(
        self, name: str, size_bytes: int, arrived_s: float, receive: Receive, asker: Asker
    ) -> tuple[Text, Model, float]:
        """Return the tokenizer and the model for a request, which waits for them if it may, and how
        many seconds it has waited.

        While its workers are away, a model that was just served is the one to read requests with.

        Raises ApiError for a name that nobody serves, and ClientDisconnect.
        """
        table, hold, waited_s = self._router.table, self._router.queue.hold, 0.0
        while (model := table.catalogue.pick(name, random.random()) or table.names.last(name)) is None:
            self._has_workers(name)
            began_s = time.monotonic()
            # A name that may be none wakes nobody.
            asks = table.names.expected(name, began_s)
            waiting = hold.until(lambda: self._has_workers(name), name, size_bytes, arrived_s, asks=asks, asker=asker)
            try:
                await while_connected(receive, waiting)
            except ApiError:
                self._router.metrics.failed(has_first=False)
                raise
            waited_s += time.monotonic() - began_s
        return table.text(model.identity), model, waited_s

    def check(self, name: str) -> None:
        """Raise ApiError for a name that nobody serves or will serve."""
        if self._router.table.names.last(name) is None:
            self._has_workers(name)

    def _has_workers(self, name: str) -> bool:
        """Return whether a name is served. Raises ApiError if it need not be waited for."""
        if not self._router.table.names.known(name, time.monotonic()):
            raise self._unknown(name)
        return bool(self._router.table.catalogue.current(name))

    def _unknown(self, name: str) -> ApiError:
        names = self._router.table.names
        if not names.any_served:  # nor is it known which LoRA adapters there are
            return ApiError(503, "no worker has been ready yet; try again later", code="starting", retry_after_s=5)
        listed = list(names.listed())
        has = ", ".join(repr(n) for n in listed[:_MAX_NAMES_SHOWN]) + (" ..." if listed[_MAX_NAMES_SHOWN:] else "")
        message = f"the model {name!r} does not exist; this server has {has}"
        return ApiError(404, message, code="model_not_found", param="model")
