"""The pair handshake.

A few tokens really go from each prefill worker to each decode worker before the pair counts as
healthy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time

from disagg_router.dispatch.attempt import Finished
from disagg_router.dispatch.dispatcher import Dispatcher
from disagg_router.dispatch.request_state import RequestState
from disagg_router.dispatch.trace import Trace
from disagg_router.errors import ROUTER_EXHAUSTED, AttemptFailed, NoRoom
from disagg_router.workers.pair_choice import Choice, handshake_pairs, pair_key
from disagg_router.workers.pair_link import Link
from disagg_router.workers.table import WorkerTable
from disagg_router.workers.worker_info import Worker

log = logging.getLogger(__name__)
_INTERVAL_S = 0.25
_TIMEOUT_S = 15.0
_PROBE_TOKENS = 4
# A handshake must not disturb real requests.
_MAX_AT_ONCE = 4


class Handshakes:
    """The set of pairs that have moved KV.

    New pairs are probed, and failed ones are probed again with the backoff of the breaker.
    """

    def __init__(self, dispatcher: Dispatcher, table: WorkerTable) -> None:
        self._dispatcher = dispatcher
        self._table = table
        self._healthy: set[str] = set()
        self._expected: dict[str, tuple[Worker, Worker]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

    def counts(self) -> dict[str, int]:
        return {"expected": len(self._expected), "healthy": len(self._healthy & self._expected.keys())}

    def links(self) -> list[tuple[Worker, Worker, Link]]:
        """Return (prefill, decode, link) of each healthy pair."""
        pairs = [pair for key, pair in self._expected.items() if key in self._healthy]
        return [(prefill, decode, self._table.link(prefill, decode)) for prefill, decode in pairs]

    async def run(self) -> None:
        """Probe pairs until cancelled."""
        try:
            while True:
                self._look()
                await asyncio.sleep(_INTERVAL_S)
        finally:
            for probe in self._probes.values():
                probe.cancel()
            await asyncio.gather(*self._probes.values(), return_exceptions=True)

    def _look(self) -> None:
        """Start the probes that are due, and forget pairs that are gone or have failed since."""
        pairs = {pair_key(p, d): (p, d) for p, d in handshake_pairs(self._table.workers())}
        now_s = time.monotonic()
        self._expected = pairs
        self._healthy = {key for key in self._healthy & pairs.keys() if not self._table.breaker.is_open(key, now_s)}
        self._table.proven = frozenset(part for key in self._healthy for part in key.split("|"))
        self._probes = {key: probe for key, probe in self._probes.items() if not probe.done()}
        for key, (prefill, decode) in pairs.items():
            if len(self._probes) >= _MAX_AT_ONCE:
                return
            avoided = any(self._table.breaker.is_open(k, now_s) for k in (key, prefill.incarnation, decode.incarnation))
            if key not in self._healthy and key not in self._probes and not avoided:
                self._probes[key] = asyncio.create_task(self._probe(prefill, decode))

    async def _probe(self, prefill: Worker, decode: Worker) -> None:
        sampling = {"seed": 0, "max_new_tokens": 2, "temperature": 0.0, "min_tokens": 2, "stop_token_ids": []}
        state = RequestState(
            f"handshake-{secrets.token_hex(8)}", decode.identity, tuple(range(_PROBE_TOKENS)), sampling, 1
        )
        trace, key = Trace(), pair_key(prefill, decode)
        items = self._dispatcher.attempt(state, trace, Choice(prefill, decode), time.monotonic() + _TIMEOUT_S)
        try:
            async with contextlib.aclosing(items):
                finished = [item async for item in items if isinstance(item, Finished)]
            if not finished or trace.path != "remote" or trace.kv_bytes == 0:
                raise AttemptFailed("no KV was moved", reason="protocol")
        except NoRoom as refusal:
            log.debug("handshake %s -> %s put off: %s", prefill.pod, decode.pod, refusal)
            return
        except AttemptFailed as failure:
            log.warning("handshake %s -> %s failed: %s: %s", prefill.pod, decode.pod, failure.reason, failure)
            if failure.reason != ROUTER_EXHAUSTED:
                self._table.breaker.failed(key, time.monotonic())
            return
        log.info(
            "handshake %s -> %s: %s KV bytes in %s s over %s (%s)",
            prefill.pod,
            decode.pod,
            trace.kv_bytes,
            trace.transfer_s,
            trace.transport,
            trace.evidence,
        )
        self._healthy.add(key)
        self._table.proven |= {prefill.incarnation, decode.incarnation}
