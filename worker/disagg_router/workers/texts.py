"""The text side of the models: their tokenizers, which the workers have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable

from disagg_router.text.tokenizer import Text
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.worker_info import Worker
from disagg_wire.protocol import READY, TOKENIZER_PATH

log = logging.getLogger(__name__)


class Texts:
    """The tokenizers that are `known`, by the digest of the weights; there are at most a few, two
    during a rollout.
    """

    def __init__(self, client: WorkerClient) -> None:
        self._client = client
        self.known: dict[str, Text] = {}

    async def fetch(self, workers: Iterable[Worker]) -> None:
        """Fetch the tokenizer of each new model."""
        ready = {w.digest: w for w in workers if w.state == READY}
        for digest, worker in ready.items():
            if digest in self.known:
                continue
            try:
                files = await self._client.get(worker.url, TOKENIZER_PATH, timeout_s=10.0)
                self.known[digest] = await asyncio.to_thread(Text, files)
            except Exception as error:  # Whatever a new revision has: this router serves the old one on.
                log.error("no tokenizer from %s: %s", worker.pod, str(error) or type(error).__name__)

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget the models that are not served any more."""
        self.known = {digest: text for digest, text in self.known.items() if digest in digests}
