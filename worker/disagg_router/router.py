"""One router process: its parts wired together, and the state that it reports to the operator."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disagg_router.admission.backlog import Backlog
from disagg_router.admission.hold import Hold
from disagg_router.admission.queues import Queues
from disagg_router.dispatch.attempt import Patience
from disagg_router.dispatch.dispatcher import Dispatcher
from disagg_router.dispatch.handshake import Handshakes
from disagg_router.dispatch.upstream import Upstream, upstream_of
from disagg_router.generation_metrics import GenerationMetrics
from disagg_router.membership.file import FileMembership
from disagg_router.membership.kubernetes import KubernetesMembership
from disagg_router.metrics import BreakerMetrics, Metrics, SplitMetrics
from disagg_router.process_metrics import ProcessMetrics
from disagg_router.settings import Settings
from disagg_router.tracing.setup import tracer_of
from disagg_router.tracing.tracing_metrics import TracingMetrics
from disagg_router.workers.canary_tally import CanaryTally
from disagg_router.workers.catalogue import NOTHING_WHOLE, KnownNames
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.lease import Limits
from disagg_router.workers.table import WorkerTable
from disagg_router.workers.worker_info import Membership
from disagg_wire.fabric import FABRIC
from disagg_wire.protocol import DRAINING
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)
# How long requests may take to be answered that are not served any more.
_ANSWER_S = 1.0
# How long the spans of the last requests may take to their collector.
_LAST_SPANS_S = 2.0


def membership_of(settings: Settings) -> Membership:
    if settings.membership == "kubernetes":
        return KubernetesMembership(settings.kube_api, settings.namespace, settings.deployment)
    return FileMembership(Path(settings.membership.removeprefix("file://")))


class Router:
    """The parts that all requests share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.objectives)
        self.generations = GenerationMetrics(self.metrics.registry, settings.objectives)
        self.client = WorkerClient(settings.bearer())
        self._membership = membership_of(settings)
        backlog = Backlog(settings.queue_max_depth, settings.queue_max_bytes)
        hold = Hold(backlog, settings.hold_s, lambda outcome: self.metrics.held.labels(outcome).inc())
        self.queue = Queues(backlog, hold, settings.queue_max_wait_s, settings.queue_patience_s)
        names = KnownNames(settings.model_name, settings.name_memory_s, settings.lora_adapters)
        self.table = WorkerTable(
            self.client, self._membership, settings.poll_interval_s, names, changed=self.queue.recheck,
            limits=Limits(settings.silence_s, settings.step_allowance),
        )  # fmt: skip
        self.table.gave_up = lambda reason: self.metrics.given_up.labels(reason).inc()
        patience = Patience(settings.first_token_timeout_s, settings.stall_timeout_s)
        self.dispatcher = Dispatcher(
            self.client, self.table, self.queue, self.metrics, settings.request_timeout_s, patience, settings.deadlines,
            settings.local_prefill_max_tokens,
        )  # fmt: skip
        self.incarnation = secrets.token_hex(8)
        self.tracer = tracer_of(settings, TracingMetrics(self.metrics.registry), self.incarnation)
        self.upstream: Upstream | None = upstream_of(settings)
        self.split = SplitMetrics(self.metrics.registry)
        breaker, retries = self.table.breaker, self.dispatcher.retries
        BreakerMetrics(
            self.metrics.registry, lambda: breaker.counts(time.monotonic()), breaker.changes,
            lambda: retries.left(time.monotonic()),
        )  # fmt: skip
        self.handshakes = Handshakes(self.dispatcher, self.table)
        # By then, also a hang before the second token has shown.
        self.tally = CanaryTally(settings.first_token_timeout_s + settings.stall_timeout_s)
        self.table.warm_up_s = settings.canary_warm_up_s
        self.metrics.watch(
            lambda: {p: self.queue.waiting(p) for p in ROLES}, self.handshakes.counts, self._links, lambda: hold.waiting
        )
        self._process = ProcessMetrics(self.metrics.registry, self._poll_ages)
        self.created_s = int(time.time())
        self.draining = False
        self.active = 0
        self._idle_since_s = time.monotonic()
        self.table.active = lambda: self.active > 0
        self.idle = asyncio.Event()
        self.idle.set()

    def _poll_ages(self) -> dict[str, float]:
        """Return for each pool how long its most silent worker has been silent."""
        ages, now_s = dict.fromkeys(ROLES, 0.0), time.monotonic()
        for name, member in self._membership.members().items():
            for pool in member.pools & ages.keys():
                ages[pool] = max(ages[pool], self.table.misses.silent_s(name, now_s))
        return ages

    def _links(self) -> Counter[tuple[str, str]]:
        """Count the healthy pairs whose transport is known by transport and evidence."""
        return Counter((link.transport, link.evidence) for _, _, link in self.handshakes.links() if link.transport)

    async def close(self) -> None:
        """Close all connections to workers and to other services."""
        if self.tracer is not None:
            await self.tracer.exporter.close(_LAST_SPANS_S)
        await self.client.close()
        if self.upstream is not None:
            await self.upstream.close()

    def end(self) -> None:
        """Begin to end: no longer ready, but still answering."""
        self.draining = self.table.ending = True

    @contextlib.contextmanager
    def work(self) -> Iterator[contextlib.ExitStack]:
        """Count a request as running until the stack closes.

        That is at the end of the block, unless `pop_all` hands the stack on.
        """
        with contextlib.ExitStack() as stack:
            self.active += 1
            self.idle.clear()
            stack.callback(self._leave)
            self.metrics.running.set(self.active)
            yield stack

    def _leave(self) -> None:
        self.active -= 1
        self.metrics.running.set(self.active)
        if self.active == 0:
            self._idle_since_s = time.monotonic()
            self.idle.set()

    async def run(self) -> None:
        """Run membership, polling and handshakes until cancelled."""
        parts = [self._membership.run(), self.table.run(), self.handshakes.run(), self._process.run()]
        if self.tracer is not None:
            parts.append(self.tracer.exporter.run())
        await asyncio.gather(*parts)

    async def answer_the_held(self) -> None:
        """Answer the requests for which there are no workers, because this router ends."""
        self.queue.hold.end("this router ends")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                await self.idle.wait()

    async def answer_the_deserted(self) -> None:
        """Answer them while this router ends as soon as it is known that no worker will come."""
        while True:
            if self.table.deserted:
                log.info("the deployment and its workers are gone; %d requests are held", self.queue.hold.waiting)
                self.queue.hold.end("the deployment is gone")
                return
            await asyncio.sleep(self.settings.poll_interval_s)

    def idle_s(self) -> float:
        """Return the seconds since the last request ended, or since the start; 0 while one runs."""
        return 0.0 if self.active else time.monotonic() - self._idle_since_s

    async def demand(self, cursor: str, wait_s: float, cold_start_s: float | None) -> dict[str, Any]:
        """Return the answer to GET /internal/v1/demand, once there is something to tell."""
        hold = self.queue.hold
        if cold_start_s is not None:
            hold.cold_start_s = cold_start_s
        if not hold.asking:
            await hold.demand.until_asked(cursor, wait_s)
        wanted = hold.asking > 0 or hold.demand.is_news(cursor)
        return {"wanted": wanted, "held": hold.asking, "cursor": hold.demand.cursor}

    def state(self) -> dict[str, Any]:
        """Return the answer to GET /internal/v1/state."""
        workers = [
            {
                "name": w.name,
                "pod": w.pod,
                "incarnation": w.incarnation,
                "role": w.role,
                "state": DRAINING if w.last_resort else w.state,
                "pools": sorted(w.pools),
                "compat": w.compat,
                "revision": w.revision,
                "interface": w.interface,
                "transport": w.transport,
                "evidence": w.evidence or None,
                "engine": w.engine or None,
                FABRIC: w.fabric,
                "features": sorted(w.features),
                "adapters": sorted(w.adapters),
                "model": {"name": w.model, "digest": w.digest, "revision": w.model_revision or None},
                "load": {
                    "waiting_requests": w.waiting_requests,
                    "waiting_tokens": w.waiting_tokens,
                    "running_requests": w.running_requests,
                },
            }
            for w in self.table.workers()
        ]
        return {
            "incarnation": self.incarnation,
            "workers": workers,
            "pairs": self.handshakes.counts(),
            "links": [
                {
                    "prefill": prefill.pod,
                    "decode": decode.pod,
                    "transport": link.transport or None,
                    "evidence": link.evidence if link.transport else None,
                }
                for prefill, decode, link in self.handshakes.links()
            ],
            "waiting": {p: self.queue.waiting(p) for p in ROLES},
            "held": self.queue.hold.asking,
            "idle_s": round(self.idle_s(), 3),
            "canary": self.tally.to_json(self.table.canary, time.time()),
            "models": [
                {
                    "name": name,
                    "digest": offer.model.identity.digest,
                    "fingerprint": offer.model.identity.fingerprint,
                    "parent": offer.model.identity.parent or None,
                    "whole": offer.ability > NOTHING_WHOLE,
                    "share": round(offer.share, 4) if offer in self.table.catalogue.current(name) else 0.0,
                }
                for name, offers in sorted(self.table.catalogue.offers.items())
                for offer in offers
            ],
        }
