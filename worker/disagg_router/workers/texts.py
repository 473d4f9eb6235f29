"""The text side of the models: their tokenizers, which the workers have."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from disagg_router.text.tokenizer import Text
from disagg_router.workers.breaker import Breaker
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.worker_info import Worker
from disagg_wire.protocol import READY, TOKENIZER_PATH

log = logging.getLogger(__name__)
# The largest answer with a tokenizer; those of the models in use have a fifth of it at most.
_MOST_BYTES = 256 << 20
_TIMEOUT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0


class Texts:
    """The tokenizers that are `known`, by the digest of the weights; there are at most a few, two
    during a rollout.

    One that cannot be fetched or used is tried again after a pause, which doubles, with any worker
    that has it.
    """

    def __init__(self, client: WorkerClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._failing = Breaker(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, dice=lambda: 1.0 - random.random() / 2)
        self.known: dict[str, Text] = {}

    async def fetch(self, workers: Iterable[Worker]) -> None:
        """Fetch the tokenizer of each new model, unless it has just failed."""
        ready: defaultdict[str, list[Worker]] = defaultdict(list)
        for worker in workers:
            if worker.state == READY and worker.digest not in self.known:
                ready[worker.digest].append(worker)
        due = [found for digest, found in ready.items() if not self._failing.is_open(digest, self._clock())]
        await asyncio.gather(*(self._fetch(random.choice(found)) for found in due))

    async def _fetch(self, worker: Worker) -> None:
        try:
            files = await self._client.get(worker.url, TOKENIZER_PATH, _TIMEOUT_S, most_bytes=_MOST_BYTES)
            self.known[worker.digest] = await asyncio.to_thread(Text, files)
        except Exception as error:  # Whatever a new revision has: this router serves the old one on.
            log.error("no tokenizer from %s: %s", worker.pod, str(error) or type(error).__name__)
            self._failing.failed(worker.digest, self._clock())
        else:
            self._failing.succeeded(worker.digest)

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget the models that are not served any more."""
        self.known = {digest: text for digest, text in self.known.items() if digest in digests}
        self._failing.keep_only(digests, self._clock())
