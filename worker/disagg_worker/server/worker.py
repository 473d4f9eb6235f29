"""The state of the worker process: its identity, its role and its requests in progress.

It is used on the event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from disagg_wire import codes
from disagg_wire.cluster_key import bearer_of
from disagg_wire.protocol import DRAINING, FEATURES, PROTOCOL_VERSION, READY, STARTING
from disagg_worker.server import jobs
from disagg_worker.server.metrics import Metrics
from disagg_worker.settings import Settings
from disagg_worker.values.choices import Role
from disagg_worker.values.events import ErrorEvent

if TYPE_CHECKING:
    from disagg_worker.model.checkpoint import LoadProgress

log = logging.getLogger(__name__)
# The time that peers get to read that their requests can go on elsewhere, before they are cut off.
_BREAK_OFF_S = 5.0
_ELSEWHERE = ErrorEvent(
    codes.DRAINING, "this worker stops serving in this role; the request can go on elsewhere", retryable=True
)


class RoleChanging(Exception):
    """Raised when a change to another role is in progress."""


class Worker:
    """The state of one worker.

    It is `starting` until a node is set, then `ready`; it is `draining` before it ends and while it
    changes its role.
    """

    def __init__(self, settings: Settings, key: bytes, incarnation: str) -> None:
        self.settings = settings
        self.incarnation = incarnation
        self.role: Role = settings.role
        self.role_epoch = 0
        self.changing_to: Role | None = None
        self.node: jobs.Node | None = None
        self.tokenizer: dict[str, Any] = {}
        self.failed: str = ""
        self.loading: LoadProgress | None = None
        self.draining = False
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.metrics = Metrics(lambda: self.node.engine.load() if self.node else None, settings.block_size_tokens)
        self._jobs: dict[jobs.Job, Callable[[], None]] = {}
        self._change: asyncio.Task[None] | None = None
        self._bearer = b"Bearer " + bearer_of(key).encode()

    @property
    def state(self) -> str:
        if self.draining or self.changing_to is not None:
            return DRAINING
        return READY if self.node else STARTING

    @property
    def engine_alive(self) -> bool:
        """Whether the engine's loop makes progress; also true before there is an engine."""
        return self.node is None or self.node.engine.alive()

    @property
    def full(self) -> bool:
        """Whether there are as many requests as can run and wait.

        Their number is bounded because each needs a task, a connection and perhaps a thread.
        """
        return self.active >= self.settings.max_running + self.settings.max_waiting

    def on_progress(self, progress: LoadProgress) -> None:
        """Note how much of the weights has been loaded. Any thread may call this."""
        self.loading = progress

    def authorized(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        return hmac.compare_digest(given, self._bearer)

    # ---- Requests in progress ----

    def enter(self) -> None:
        self.active += 1
        self.idle.clear()

    def leave(self) -> None:
        self.active -= 1
        if self.active == 0:
            self.idle.set()

    def keep(self, job: jobs.Job) -> Callable[[], None]:
        """Remember a job that has begun.

        Returns the function that frees what it holds (idempotent); the worker is not idle before it
        has been called.
        """

        def close() -> None:
            if self._jobs.pop(job, None) is None:
                return
            try:
                job.close()
            finally:
                self.leave()

        self._jobs[job] = close
        return close

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until all requests have ended, and return whether they did so in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.idle.wait()
        except TimeoutError:
            return False
        return True

    async def break_off(self, timeout_s: float) -> None:
        """Tell the clients of all running requests to go on elsewhere.

        A client that does not read that within the timeout is cut off.
        """
        for job in list(self._jobs):
            job.interrupt(_ELSEWHERE)
        if not await self.wait_idle(timeout_s):
            for close in list(self._jobs.values()):
                close()

    # ---- The role ----

    def change_role(self, wanted: Role, deadline_s: float) -> bool:
        """Change the role and return whether the worker has it already.

        If not, it gets the role when the running requests have finished, or have been broken off
        after `deadline_s` seconds. The weights, the cache and the addresses stay the same.

        Raises RoleChanging if a change to another role is in progress.
        """
        if self.changing_to is not None:
            if self.changing_to != wanted:
                raise RoleChanging(f"this worker is about to become {self.changing_to}")
            return False
        if self.role == wanted:
            return True
        if wanted == "both":  # Running requests can go on.
            self._become(wanted)
            return True
        self.changing_to = wanted
        log.info("role %s -> %s: %d requests run", self.role, wanted, self.active)
        self._change = asyncio.create_task(self._drain_and_become(wanted, deadline_s))
        return False

    async def _drain_and_become(self, wanted: Role, deadline_s: float) -> None:
        started_s = time.monotonic()
        if not await self.wait_idle(deadline_s):
            log.warning(
                "role %s -> %s: %d requests did not finish within %g s", self.role, wanted, self.active, deadline_s
            )
            await self.break_off(_BREAK_OFF_S)
        if not self.draining:
            self._become(wanted)
            log.info("role is %s after %.2f s", wanted, time.monotonic() - started_s)
        self.changing_to = None

    def _become(self, role: Role) -> None:
        """Take a role, with a new incarnation.

        What routers know about the old incarnation (tickets, failures, load, handshakes) does not
        hold for the new one.
        """
        if self.node is None:
            raise AssertionError("a worker that changes its role has a node")
        self.role = role
        self.role_epoch += 1
        self.incarnation = f"{self.incarnation.rpartition('/')[0]}/{secrets.token_hex(16)}"
        self.node = replace(self.node, incarnation=self.incarnation)
        self.publish_identity()

    def publish_identity(self) -> None:
        """Set the labels of `disagg_worker_info`."""
        interface = self.node.interface if self.node else ""
        names = {
            "role": self.role,
            "incarnation": self.incarnation,
            "model": self.settings.model_name,
            "interface": interface,
        }
        self.metrics.info.info(names)

    def role_status(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "role_epoch": self.role_epoch,
            "changing_to": self.changing_to,
            "incarnation": self.incarnation,
            "state": self.state,
            "running_requests": self.active,
        }

    def info(self) -> dict[str, Any]:
        """Return the answer to `info` (docs/protocol.md)."""
        s = self.settings
        answer: dict[str, Any] = {
            "protocol": PROTOCOL_VERSION,
            "features": list(FEATURES),
            "incarnation": self.incarnation,
            "pod": s.pod_name,
            "role": self.role,
            "role_epoch": self.role_epoch,
            "changing_to": self.changing_to,
            "state": self.state,
            "revision": s.revision,
            "limits": {"max_running": s.max_running, "max_waiting": s.max_waiting},
        }
        if self.node is None:
            if self.loading is not None:
                answer["loading"] = {"read_bytes": self.loading.read_bytes, "total_bytes": self.loading.total_bytes}
            return answer
        engine, load = self.node.engine, self.node.engine.load()
        model = engine.model
        answer["model"] = {
            "name": model.name,
            "digest": model.digest,
            "vocab_size": model.vocab_size,
            "max_model_len": model.max_model_len,
            "eos_token_ids": list(model.eos_token_ids),
            "bos_token_id": model.bos_token_id,
        }
        answer["kv"] = {
            "compat": self.node.compat,
            "host": self.node.listener.host,
            "port": self.node.listener.port,
            "interface": self.node.interface,
            "transport": "tcp",
            "block_size_tokens": engine.layout.block_size_tokens,
            "bytes_per_token": engine.layout.bytes_per_token,
            "blocks_total": load.blocks_total,
            "blocks_free": load.blocks_free,
        }
        answer["load"] = {
            "waiting_requests": load.waiting_requests,
            "waiting_tokens": load.waiting_tokens,
            "running_requests": load.running_requests,
            "room": asdict(load.room),
            "prefill_limit_tokens": load.prefill_limit_tokens,
        }
        return answer
