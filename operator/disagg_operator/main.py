"""The operator process: it loads settings and credentials, runs the runtime and starts the watches.

The runtime uses the main thread. kopf, which runs the watches, gets a thread and an event loop of
its own for two reasons: when it stops, it treats every task of its loop as its own; and decoding a
burst of watch events must not stall the scrape loop. SIGTERM ends both. If the watches end by
themselves, the process exits too and the kubelet restarts it.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import random
import secrets
import signal
import sys
import threading
import time
import uuid

import kopf

from disagg_operator.controller.runtime import Runtime
from disagg_operator.controller.watches import build_registry
from disagg_operator.kube import credentials as creds
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.resources import Resource
from disagg_operator.settings import BadSettings, OperatorSettings, load
from disagg_operator.vocabulary import Obj

log = logging.getLogger(__name__)

_WATCH_STOP_S = 10.0


def wall_clock() -> str:
    """Return the current time in UTC as RFC 3339 text."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Watches:
    """The watches, run by kopf in a thread. `ended` is set once kopf has ended for any reason."""

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
        return self._thread.is_alive()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join, _WATCH_STOP_S)

    def _sink(self, resource: Resource, kind: str | None, obj: Obj) -> None:
        self._loop.call_soon_threadsafe(self._runtime.watch_event, resource, kind, obj)

    def _run(self) -> None:
        namespace = self._settings.watch_namespace
        try:
            asyncio.run(
                kopf.operator(
                    registry=build_registry(self._sink, self._credentials),
                    standalone=True,
                    clusterwide=not namespace,
                    namespaces=[namespace] if namespace else [],
                    stop_flag=self._stop,
                )
            )
        except Exception:
            log.exception("the watches ended")
        finally:
            self._loop.call_soon_threadsafe(self.ended.set)


async def serve(settings: OperatorSettings, credentials: creds.Credentials, stop: asyncio.Event) -> int:
    """Run until `stop` is set (returns 0) or the watches end (returns 1)."""
    kube = HttpKube(credentials, deadline_s=settings.kube_timeout_s, jitter=random.random)
    runtime = Runtime(
        settings,
        kube,
        clock=time.monotonic,
        wall=wall_clock,
        new_id=lambda: uuid.uuid4().hex[:16],
        new_cluster_key=lambda: secrets.token_hex(32),
    )
    watches = Watches(settings, credentials, runtime)
    runtime.watches_alive = watches.alive
    await runtime.start()
    watches.start()
    stopping = asyncio.create_task(stop.wait())
    dying = asyncio.create_task(watches.ended.wait())
    await asyncio.wait((stopping, dying), return_when=asyncio.FIRST_COMPLETED)
    failed = not stop.is_set()
    log.info("stopping: %s", "the watches ended" if failed else "asked to")
    await watches.stop()
    await runtime.stop()
    for task in (stopping, dying):
        task.cancel()
    await asyncio.gather(stopping, dying, return_exceptions=True)
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
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    return asyncio.run(_run(settings, credentials))
