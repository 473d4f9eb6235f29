"""PURE: The workers that are about to end and still take requests, for when there is nobody else.

When a whole deployment is deleted, routers and workers get SIGTERM together. What the routers have
accepted by then is answered by workers that are ending.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from disagg_router.workers.catalogue import can_serve
from disagg_router.workers.worker_info import Identity, Worker
from disagg_wire.protocol import DRAINING, READY


def with_reserves(workers: Iterable[Worker], leaving: Iterable[Worker]) -> list[Worker]:
    """Return the workers, and those that are ending as far as they are needed.

    That is so if the ready workers of a model cannot serve a whole request; then those of the model
    that are ending, or that are `leaving` and have not heard of it, count as ready.
    """
    found = list(workers)
    ending = [w for w in found if w.last_resort and w.state == DRAINING]
    ending += [w for w in leaving if is_of_use(w)]
    if not ending:
        return found
    lacking: dict[Identity, bool] = {
        identity: not can_serve(identity, [w for w in found if w.identity == identity and w.state == READY])
        for identity in {w.identity for w in ending}
    }
    called = {w.name: replace(w, state=READY, last_resort=True) for w in ending if lacking[w.identity]}
    here = {w.name for w in found}
    return [called.get(w.name, w) for w in found] + [w for name, w in called.items() if name not in here]


def is_of_use(worker: Worker) -> bool:
    """Return whether a worker that leaves would take a request."""
    return worker.state == READY or (worker.last_resort and worker.state == DRAINING)
