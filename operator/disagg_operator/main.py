"""The operator process: it loads settings and credentials, runs the runtime and starts the watches.

The runtime uses the main thread. kopf, which runs the watches, gets a thread and an event loop of
its own for two reasons: when it stops, it treats every task of its loop as its own; and decoding a
burst of watch events must not stall the scrape loop. SIGTERM ends both. If the watches end by
themselves, the process exits too and the kubelet restarts it.

If there is a Lease, the process takes part in the election of the leader from its start to its end.
It gives the Lease back after its last write, so that another one leads at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator

import kopf

from disagg_operator.controller.elector import Alone, Elector, Leadership
from disagg_operator.controller.leadership import Timing
from disagg_operator.controller.runtime import Runtime
from disagg_operator.controller.scalers.scaler_process import ScalerProcess
from disagg_operator.controller.watches import build_registry
from disagg_operator.kube import credentials as creds
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.listings import Listing
from disagg_operator.kube.resources import Resource
from disagg_operator.settings import BadSettings, OperatorSettings, load
from disagg_operator.vocabulary import Obj
from disagg_wire import log_lines

log = logging.getLogger(__name__)

_WATCH_STOP_S = 10.0


def wall_clock() -> str:
    """Return the current time in UTC as RFC 3339 text."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Watches:
    """The watches, run by kopf in a thread. `ended` is set once kopf has ended for any reason.

    If namespaces are named, kopf does not look for them, nor for kinds that are installed later,
    because the operator may have no right outside of the namespaces.
    """

    def __init__(self, settings: OperatorSettings, credentials: creds.Credentials, runtime: Runtime) -> None:
        self._settings = settings
        self._credentials = credentials
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self.ended = asyncio.Event()

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        """Return whether they run or have not been started yet."""
        return self._thread.ident is None or self._thread.is_alive()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, _WATCH_STOP_S)

    def _sink(self, resource: Resource, kind: str | None, obj: Obj) -> None:
        self._loop.call_soon_threadsafe(self._runtime.watch_event, resource, kind, obj)

    def _listed(self, listing: Listing) -> None:
        self._loop.call_soon_threadsafe(self._runtime.watch_listed, listing)

    def _run(self) -> None:
        namespaces = self._settings.namespaces
        try:
            asyncio.run(
                kopf.operator(
                    registry=build_registry(
                        self._sink,
                        self._listed,
                        self._credentials,
                        scans=not namespaces,
                        silence_s=self._settings.watch_silence_s,
                    ),
                    standalone=True,
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                    stop_flag=self._stop,
                )
            )
        except Exception:
            log.exception("the watches ended")
        finally:
            self._loop.call_soon_threadsafe(self.ended.set)


def _lease_clock() -> float:
    """Return a monotonic time that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _lease_wall() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextlib.asynccontextmanager
async def election(settings: OperatorSettings, credentials: creds.Credentials) -> AsyncIterator[Leadership]:
    """Take part in the election of the leader, and give the Lease back at the end."""
    if not settings.lease_namespace:
        yield Alone()
        return
    timing = Timing(settings.lease_duration_s, settings.lease_renew_deadline_s, settings.lease_retry_s)
    kube = HttpKube(credentials, deadline_s=timing.renew_deadline_s / 2, attempts=1)
    elector = Elector(
        kube,
        namespace=settings.lease_namespace,
        name=settings.lease_name,
        me=f"{settings.pod_name or socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        timing=timing,
        clock=_lease_clock,
        wall=_lease_wall,
        chance=random.random,
    )
    running = asyncio.create_task(elector.run(), name="election")
    try:
        yield elector
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await elector.release()
        await kube.close()


async def serve(settings: OperatorSettings, credentials: creds.Credentials, stop: asyncio.Event) -> int:
    """Run until `stop` is set (returns 0) or the watches end (returns 1)."""
    async with election(settings, credentials) as leadership:
        return await _serve(settings, credentials, stop, leadership)


async def _serve(
    settings: OperatorSettings, credentials: creds.Credentials, stop: asyncio.Event, leadership: Leadership
) -> int:
    kube = HttpKube(credentials, deadline_s=settings.kube_timeout_s, jitter=random.random)
    kube.write_within_s = leadership.write_within_s
    if settings.scaler_only:
        return await _serve_scalers(settings, kube, stop, leadership)
    runtime = Runtime(
        settings,
        kube,
        clock=time.monotonic,
        wall=wall_clock,
        new_id=lambda: uuid.uuid4().hex[:16],
        new_cluster_key=lambda: secrets.token_hex(32),
        leadership=leadership,
    )
    watches = Watches(settings, credentials, runtime)
    runtime.watches_alive = watches.alive
    await runtime.start()
    stopping = asyncio.create_task(stop.wait())
    dying = asyncio.create_task(watches.ended.wait())
    # Before the first list has succeeded, the kinds to be watched may be missing.
    listing = asyncio.create_task(runtime.listed.wait())
    await asyncio.wait((stopping, listing), return_when=asyncio.FIRST_COMPLETED)
    if listing.done():
        watches.start()
    await asyncio.wait((stopping, dying), return_when=asyncio.FIRST_COMPLETED)
    failed = not stop.is_set()
    log.info("stopping: %s", "the watches ended" if failed else "asked to")
    await watches.stop()
    await runtime.stop()
    for task in (stopping, dying, listing):
        task.cancel()
    await asyncio.gather(stopping, dying, listing, return_exceptions=True)
    return 1 if failed else 0


async def _serve_scalers(
    settings: OperatorSettings, kube: HttpKube, stop: asyncio.Event, leadership: Leadership
) -> int:
    """Run as `_serve` does, for DisaggScalers alone, which need no watches."""
    process = ScalerProcess(
        settings,
        kube,
        clock=time.monotonic,
        wall=wall_clock,
        new_id=lambda: uuid.uuid4().hex[:16],
        epoch=time.time,
        leadership=leadership,
    )
    await process.start()
    tasks = (asyncio.create_task(stop.wait()), asyncio.create_task(process.ended()))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    failed = not stop.is_set()
    log.info("stopping: %s", "the work ended" if failed else "asked to")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await process.stop()
    return 1 if failed else 0


async def _run(settings: OperatorSettings, credentials: creds.Credentials) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await serve(settings, credentials, stop)


def main() -> int:
    """Run the operator as `python -m disagg_operator` and return its exit status."""
    try:
        settings = load(os.environ)
        credentials = creds.load()
    except (BadSettings, creds.NoCredentials) as error:
        print(f"disagg-operator: {error}", file=sys.stderr)
        return 2
    log_lines.configure(settings.log_level, "%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    return asyncio.run(_run(settings, credentials))
