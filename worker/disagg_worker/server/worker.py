"""The state of the worker process: its identity, its role and its requests in progress.

It is used on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from disagg_protocol.bodies import DecodeRequest, PrefillRequest
from disagg_protocol.endpoint import Endpoint, RoleChanging
from disagg_protocol.errors import InvalidInput
from disagg_protocol.requests import Job
from disagg_protocol.ticket import Ticket
from disagg_wire.fabric import FABRIC
from disagg_wire.load_progress import LOADING, loading_json
from disagg_wire.protocol import FEATURE_PREFILL_TRANSPORTS, FEATURES, LAST_RESORT, PROTOCOL_VERSION
from disagg_wire.roles import Role
from disagg_wire.room import Room
from disagg_worker.server import jobs
from disagg_worker.server.metrics import Metrics
from disagg_worker.settings import Settings
from disagg_worker.transfer.nixl_side import NixlSide

if TYPE_CHECKING:
    from disagg_worker.model.checkpoint import LoadProgress

log = logging.getLogger(__name__)
# The time that peers get to read that their requests can go on elsewhere, before they are cut off.
_BREAK_OFF_S = 5.0


class Worker(Endpoint):
    """The state of one worker, which serves as soon as a node is set."""

    def __init__(self, settings: Settings, key: bytes, incarnation: str) -> None:
        super().__init__(key, settings.role, incarnation, settings.keep_limits)
        self.settings = settings
        self.node: jobs.Node | None = None
        self.loading: LoadProgress | None = None
        self.fabric: dict[str, Any] | None = None
        self.source_revision = ""
        self.metrics = Metrics(lambda: self.node.engine.load() if self.node else None, settings.block_size_tokens)
        self._change: asyncio.Task[None] | None = None

    @property
    def serving(self) -> bool:
        return self.node is not None

    @property
    def problem(self) -> str:
        return "" if self.node is None or self.node.engine.alive() else "the engine loop is stuck or dead"

    @property
    def ready(self) -> bool:
        return super().ready and not (self.node is not None and self.node.engine.late())

    @property
    def progress(self) -> str:
        return str(self.loading or "")

    @property
    def full(self) -> bool:
        """Whether there are as many requests as can run and wait.

        Their number is bounded because each needs a task, a connection and perhaps a thread.
        """
        return self.active >= self.settings.max_running + self.settings.max_waiting

    @property
    def max_model_len(self) -> int:
        return self._loaded.engine.model.max_model_len

    @property
    def model_digest(self) -> str:
        return self._loaded.engine.model.digest

    @property
    def compat(self) -> str:
        return self._loaded.compat

    @property
    def _loaded(self) -> jobs.Node:
        if self.node is None:
            raise AssertionError("a worker that takes requests has a node")
        return self.node

    def on_progress(self, progress: LoadProgress) -> None:
        """Note how much of the weights has been loaded. Any thread may call this."""
        self.loading = progress

    def metrics_page(self, accept: str) -> tuple[bytes, str]:
        return self.metrics.page(accept)

    def refused(self) -> None:
        self.metrics.reservations_refused.inc()

    def limit_prefill(self, room: Room) -> None:
        self._loaded.engine.limit_prefill(room)

    # ---- The work ----

    async def start_decode(self, request: DecodeRequest, due_s: float | None) -> Job:
        node = self._loaded
        await self._prepare(node, request)
        if (here := jobs.decode_rest(node, request, due_s)) is not None:
            return here
        if node.nixl is not None and request.prefill_transports:
            await self._open_landings(node.nixl)
        return (
            jobs.decode_remote(node, request) if request.mode == "remote" else jobs.decode_local(node, request, due_s)
        )

    async def start_prefill(self, request: PrefillRequest, ticket: Ticket | None, due_s: float | None) -> Job:
        node = self._loaded
        await self._prepare(node, request)
        return jobs.prefill(node, request, ticket, due_s)

    @staticmethod
    async def _open_landings(nixl: NixlSide) -> None:
        """Make the agent of a worker that has changed its role, or whose agent is being replaced.

        Without it nothing is offered, and KV comes over TCP.
        """
        if nixl.landings.may_open:
            try:
                await asyncio.to_thread(nixl.landings.open)
            except Exception as failure:  # Its errors have no common type.
                log.warning("NIXL offers nothing: %s", failure or type(failure).__name__)

    @property
    def _nixl(self) -> NixlSide | None:
        return None if self.node is None else self.node.nixl

    @staticmethod
    async def _prepare(node: jobs.Node, request: DecodeRequest | PrefillRequest) -> None:
        """Check a request and compile its grammar, before anything is held for it.

        The latter is done in a thread, so that it does not delay the other streams.
        """
        if request.adapter is not None:
            raise InvalidInput("adapter: this engine serves no LoRA adapters")
        if request.sampling.structured is not None:
            await asyncio.to_thread(node.engine.prepare, request.sampling.to_params())

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
        self.role = role
        self.role_epoch += 1
        self.incarnation = f"{self.incarnation.rpartition('/')[0]}/{secrets.token_hex(16)}"
        self.node = replace(self._loaded, incarnation=self.incarnation)
        self.publish_identity()

    def publish_identity(self) -> None:
        """Set the labels of `disagg_worker_info`."""
        interface = self.node.interface if self.node else ""
        names = {
            "role": self.role,
            "model": self.settings.model_name,
            "interface": interface,
            "transport": self.node.usage.last.transport if self.node else "",
        }
        self.metrics.info.info(names)

    def info(self) -> dict[str, Any]:
        """Return the answer to `info` (docs/protocol.md)."""
        s = self.settings
        answer: dict[str, Any] = {
            "protocol": PROTOCOL_VERSION,
            "features": [
                *FEATURES,
                *self.keeps_streams,
                *((FEATURE_PREFILL_TRANSPORTS,) if self._nixl is not None else ()),
            ],
            "incarnation": self.incarnation,
            "pod": s.pod_name,
            "role": self.role,
            "role_epoch": self.role_epoch,
            "changing_to": self.changing_to,
            "state": self.state,
            LAST_RESORT: self.takes_last_resort,
            "revision": s.revision,
            "model_name": s.model_name,
            "limits": {"max_running": s.max_running, "max_waiting": s.max_waiting},
        }
        if self.fabric is not None:
            answer[FABRIC] = self.fabric
        if self.node is None:
            if self.loading is not None:
                answer[LOADING] = loading_json(self.loading.read_bytes, self.loading.total_bytes)
            return answer
        engine, load = self.node.engine, self.node.engine.load()
        model, moved = engine.model, self.node.usage.last
        answer["model"] = {
            "name": model.name,
            "digest": model.digest,
            "revision": self.source_revision,
            "vocab_size": model.vocab_size,
            "max_model_len": model.max_model_len,
            "eos_token_ids": list(model.eos_token_ids),
            "bos_token_id": model.bos_token_id,
        }
        answer["kv"] = {
            "compat": self.node.compat,
            "host": self.node.listener.host,
            "port": self.node.listener.port,
            "interface": moved.interface,
            "transport": moved.transport,
            "block_size_tokens": engine.layout.block_size_tokens,
            "bytes_per_token": engine.layout.bytes_per_token,
            "blocks_total": load.blocks_total,
            "blocks_free": load.blocks_free,
        }
        if self._nixl is not None:
            answer["kv"] |= {"transports": dict(self._nixl.reach), "evidence": moved.evidence}
        answer["load"] = {
            "waiting_requests": load.waiting_requests,
            "waiting_tokens": load.waiting_tokens,
            "running_requests": load.running_requests,
            "room": asdict(load.room),
            "prefill_limit_tokens": load.prefill_limit_tokens,
        }
        return answer
