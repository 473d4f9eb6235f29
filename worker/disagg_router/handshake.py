"""The pair handshake: a few tokens really go from each prefill worker to each decode worker before the pair counts as healthy."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from disagg_router.dispatch import Dispatcher, Trace
from disagg_router.errors import AttemptFailed, NoRoom
from disagg_router.request_state import RequestState
from disagg_router.table import WorkerTable
from disagg_router.workers import Choice, Worker, handshake_pairs, pair_key

log = logging.getLogger(__name__)
_INTERVAL_S = 0.5
_TIMEOUT_S = 15.0
_PROBE_TOKENS = 4


class Handshakes:
    """Keeps the set of pairs that have moved KV; probes new pairs, and failed ones again with the breaker's backoff."""

    def __init__(self, dispatcher: Dispatcher, table: WorkerTable) -> None:
        self._dispatcher = dispatcher
        self._table = table
        self._healthy: set[str] = set()
        self._expected: set[str] = set()

    def counts(self) -> dict[str, int]:
        return {"expected": len(self._expected), "healthy": len(self._healthy & self._expected)}

    async def run(self) -> None:
        """Probe until cancelled, one pair at a time: a handshake must not disturb real requests."""
        while True:
            pairs = handshake_pairs(self._table.workers())
            self._expected = {pair_key(p, d) for p, d in pairs}
            self._healthy &= self._expected
            for prefill, decode in pairs:
                key = pair_key(prefill, decode)
                if self._table.breaker.is_open(key, time.monotonic()):
                    self._healthy.discard(key)
                elif key not in self._healthy and await self._probe(prefill, decode):
                    self._healthy.add(key)
            await asyncio.sleep(_INTERVAL_S)

    async def _probe(self, prefill: Worker, decode: Worker) -> bool:
        sampling = {"seed": 0, "max_new_tokens": 2, "temperature": 0.0, "min_tokens": 2}
        state = RequestState(f"handshake-{secrets.token_hex(8)}", tuple(range(_PROBE_TOKENS)), sampling, 1)
        trace = Trace()
        try:
            async for _ in self._dispatcher.attempt(state, trace, Choice(prefill, decode), time.monotonic() + _TIMEOUT_S):
                pass
        except NoRoom:
            return False  # busy with real requests; those will show it
        except AttemptFailed as failure:
            log.warning("handshake %s -> %s failed: %s", prefill.pod, decode.pod, failure)
            self._table.breaker.failed(pair_key(prefill, decode), time.monotonic())
            return False
        log.info("handshake %s -> %s: %d KV bytes in %.1f ms", prefill.pod, decode.pod, trace.kv_bytes, 1e3 * trace.transfer_s)
        return True
