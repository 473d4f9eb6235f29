"""The state of the adapter process, as routers see it: a worker."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from pathlib import Path
from typing import Any

from disagg_adapter.engines.contract import Engine, Identity, Work
from disagg_adapter.ledger import Ledger
from disagg_adapter.metrics import Metrics, Snapshot
from disagg_adapter.model_folder import ModelFolder
from disagg_adapter.server import device_counters, jobs
from disagg_adapter.server.fabric_file import FabricFile
from disagg_adapter.server.handovers import HandOverDoor, HandOverSender
from disagg_adapter.server.monitor import Monitor, Patience
from disagg_adapter.server.run import ENGINE_LOST, work_of
from disagg_adapter.settings import Settings
from disagg_adapter.transport import Counters, Used, used
from disagg_adapter.work_done import WorkDone
from disagg_protocol.bodies import DecodeRequest, PrefillRequest
from disagg_protocol.endpoint import Endpoint
from disagg_protocol.errors import InvalidInput
from disagg_protocol.requests import Job
from disagg_protocol.ticket import Ticket
from disagg_wire.engine_metrics.readings import Readings
from disagg_wire.engines import RDMA
from disagg_wire.fabric import FABRIC
from disagg_wire.problems import ENGINE_HUNG, PROBLEM, WorkerProblem
from disagg_wire.protocol import FEATURE_DIGEST, FEATURE_PULSE, LAST_RESORT, PROTOCOL_VERSION
from disagg_wire.roles import DECODE, PREFILL, Role
from disagg_wire.room import Room

# A hand-over that is older than this part of the lease is not used.
_OLDEST_PART_OF_LEASE = 1 / 3
_TRANSFER_S = 10.0
_NOTHING = Ledger(0, 1, 0, 0)


class Adapter(Endpoint):
    """An engine behind the protocol. It must be made on the event loop."""

    def __init__(self, settings: Settings, key: bytes, engine: Engine, incarnation: str) -> None:
        super().__init__(key, settings.role, incarnation, settings.keep_limits)
        self.settings = settings
        self.engine = engine
        self.files: ModelFolder | None = None
        self.ledger = _NOTHING
        self.work_done = WorkDone()
        self.metrics = Metrics(self._snapshot)
        patience = Patience(
            settings.poll_interval_s, settings.probe_after_s, settings.probe_timeout_s, settings.start_timeout_s
        )
        self.monitor = Monitor(engine, patience, lambda: self.active > 0, self._engine_changed)
        self.door = HandOverDoor(key, settings.engine, settings.lease_s * _OLDEST_PART_OF_LEASE)
        self.sender = HandOverSender(key)
        self.handover_address = ("", 0)
        self.interface = settings.kv_interface
        self.fabric = FabricFile(settings.fabric_report)
        self._before = device_counters.received()
        self._kv_before = math.nan
        self._used: tuple[Readings | None, Used] = (None, Used("", "", ""))
        self._compat = ""

    # ---- The engine ----

    @property
    def identity(self) -> Identity | None:
        return self.monitor.health.identity

    def _engine_changed(self) -> None:
        """Take a new identity on, or drop what ran on an engine that serves no more."""
        identity = self.identity
        self.incarnation = f"{self.incarnation.rpartition('/')[0]}/{secrets.token_hex(16)}"
        if identity is None:
            for interrupt in self.interruptions():
                interrupt(ENGINE_LOST)
            return
        settings = self.settings
        self.ledger = Ledger(
            identity.blocks_total, identity.block_size_tokens, settings.max_running, settings.growth_reserve_tokens
        )
        self._before = device_counters.received()
        self._kv_before = self.monitor.health.readings.transfer_bytes_total
        self.metrics.info.info(
            {
                "role": self.role,
                "model": settings.model_name,
                "interface": self.interface,
                "transport": settings.transport,
                "engine": f"{settings.engine}-{identity.version}",
            }
        )
        shared = {
            "protocol": PROTOCOL_VERSION,
            "engine": settings.engine,
            "version": identity.version,
            "connector": identity.connector,
            "model": self.model_digest,
            "dtype": settings.dtype,
            "kv_dtype": identity.kv_dtype,
            "block_size_tokens": identity.block_size_tokens,
            "tensor_ratio": settings.tensor_ratio,
        }
        self._compat = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    def transport(self) -> Used:
        """Return what moves this worker's KV, and how that is known.

        It is worked out once for each look at the engine, because each request asks for it.
        """
        readings = self.monitor.health.readings
        if self._used[0] is not readings:
            self._used = (readings, self._transport(readings.transfer_bytes_total))
        return self._used[1]

    def _transport(self, kv_bytes: float) -> Used:
        now, before, ports = device_counters.received(), self._before, self.fabric.ports()
        counters = Counters(
            kv=kv_bytes - self._kv_before,
            interfaces={n: v - before.interfaces.get(n, 0) for n, v in now.interfaces.items()},
            rdma={n: v - before.rdma.get(n, 0) for n, v in now.rdma.items() if ports is None or n in ports},
        )
        gpus = Path("/dev/nvidiactl").exists()
        return used(counters, self.interface, self.settings.transport, gpus=gpus)

    def kv_bytes(self, tokens: int) -> int:
        """Return the bytes of KV of a prompt, in whole blocks, as engines move it."""
        if self.files is None or self.identity is None:
            return 0
        size = self.identity.block_size_tokens
        return -(-tokens // size) * size * self.files.kv_bytes_per_token

    def transfer_timeout_s(self, kv_bytes: int) -> float:
        return jobs.transfer_timeout_s(kv_bytes, min(_TRANSFER_S, self.settings.lease_s / 4))

    def room(self) -> Room:
        """Return the room for more sequences, by what is known now."""
        health = self.monitor.health
        self.ledger.read(health.readings.kv_usage, health.read_s)
        readings = health.readings
        known = readings.itl_count > 0 and 0 <= readings.itl_s_sum < math.inf
        return self.ledger.room(readings.itl_s_sum / readings.itl_count if known else 0.0)

    # ---- The endpoint ----

    @property
    def serving(self) -> bool:
        return self.identity is not None and self.files is not None

    @property
    def problem(self) -> str:
        return self.monitor.health.hung

    @property
    def drained(self) -> bool:
        """Whether the engine may be stopped: it is of no use, or nothing needs it any more."""
        if self.failed or self.problem:
            return True
        leaves = self.draining and self.needed_for_s <= 0
        return self.active == 0 and (leaves or not self.serving)

    @property
    def progress(self) -> str:
        health = self.monitor.health
        return f"{health.reason}: {health.waits_for}" if health.reason else health.waits_for

    @property
    def full(self) -> bool:
        return self.active >= self.settings.max_running + self.settings.max_waiting

    @property
    def max_model_len(self) -> int:
        return 0 if self.identity is None else self.identity.max_model_len

    @property
    def model_digest(self) -> str:
        return "" if self.files is None else self.files.digest

    @property
    def compat(self) -> str:
        return self._compat

    def metrics_page(self, accept: str) -> tuple[bytes, str]:
        return self.metrics.page(accept)

    def refused(self) -> None:
        self.metrics.reservations_refused.inc()

    def limit_prefill(self, room: Room) -> None:
        """Do nothing: the engine batches by itself."""

    def change_role(self, wanted: Role, deadline_s: float) -> bool:
        if wanted != self.role:
            raise InvalidInput(f"{self.settings.engine} keeps the role of its start, {self.role}; replace the pod")
        return True

    async def start_decode(self, request: DecodeRequest, due_s: float | None) -> Job:
        work = self._checked(request)
        if request.prefill_incarnation is not None:
            raise InvalidInput("prefill_incarnation: engines move KV by themselves")
        self.room()
        self.ledger.reserve(work.request_id, len(work.tokens), work.new_tokens)
        if request.mode == "remote":
            return jobs.RemoteDecode(self, request, work).start()
        return jobs.LocalRun(self, work, request.deadline_s).start()

    async def start_prefill(self, request: PrefillRequest, ticket: Ticket | None, due_s: float | None) -> Job:
        work = self._checked(request)
        if ticket is None:
            return jobs.PrefillAlone(self, work, request.deadline_s).start()
        return jobs.PrefillRun(self, request, work, ticket).start()

    def _checked(self, request: DecodeRequest | PrefillRequest) -> Work:
        work = work_of(request)
        known = () if self.identity is None else self.identity.adapters
        if work.adapter is not None and work.adapter not in known:
            raise InvalidInput(f"adapter: {work.adapter} is not loaded here")
        self.engine.check(work)
        return work

    def info(self) -> dict[str, Any]:
        settings, health = self.settings, self.monitor.health
        identity, files = health.identity, self.files
        answer: dict[str, Any] = {
            "protocol": PROTOCOL_VERSION,
            "features": self._features(identity),
            "incarnation": self.incarnation,
            "pod": settings.pod_name,
            "role": self.role,
            "role_epoch": self.role_epoch,
            "changing_to": None,
            "state": self.state,
            LAST_RESORT: self.takes_last_resort,
            "revision": settings.revision,
            "model_name": settings.model_name,
            "limits": {"max_running": settings.max_running, "max_waiting": settings.max_waiting},
            "engine": {"name": settings.engine, "version": identity.version if identity else ""},
        }
        if health.hung:
            answer[PROBLEM] = WorkerProblem(ENGINE_HUNG, health.hung).as_json()
        elif health.reason:
            answer[PROBLEM] = WorkerProblem(health.reason, health.waits_for).as_json()
        self._add_fabric(answer)
        if identity is None or files is None:
            return answer
        room, moved = self.room(), self.transport()
        answer["model"] = {
            "name": settings.model_name,
            "digest": files.digest,
            "revision": files.revision,
            "vocab_size": files.vocab_size,
            "max_model_len": identity.max_model_len,
            "eos_token_ids": list(files.eos_token_ids),
            "bos_token_id": files.bos_token_id,
            "adapters": list(identity.adapters),
            "adapter_digests": {
                name: hashlib.sha256(place.encode()).hexdigest() for name, place in identity.adapter_places.items()
            },
        }
        answer["kv"] = {
            "compat": self.compat,
            "host": self.handover_address[0],
            "port": self.handover_address[1],
            "interface": moved.interface,
            "transport": moved.transport,
            "evidence": moved.evidence,
            "block_size_tokens": identity.block_size_tokens,
            "bytes_per_token": files.kv_bytes_per_token,
            "blocks_total": identity.blocks_total,
            "blocks_free": self.ledger.free_blocks(),
        }
        answer["load"] = {
            "waiting_requests": self._waiting(),
            "waiting_tokens": self.work_done.queued_tokens,
            "running_requests": max(0, self.active - self._waiting()),
            "prefill_limit_tokens": 0,
        }
        if self.role != PREFILL:
            answer["load"]["room"] = room.to_json()
        return answer

    def _features(self, identity: Identity | None) -> list[str]:
        own = {FEATURE_DIGEST, FEATURE_PULSE} | self.keeps_streams
        return [] if identity is None else sorted(identity.features | own)

    def _add_fabric(self, answer: dict[str, Any]) -> None:
        """Add what the engine's container finds of the network; it may be why nothing serves."""
        if (fabric := self.fabric.told()) is not None:
            answer[FABRIC] = fabric
            if PROBLEM in fabric and not self.serving and self.settings.transport == RDMA:
                answer.setdefault(PROBLEM, fabric[PROBLEM])

    def _waiting(self) -> int:
        """Return the requests that wait in the engine."""
        waiting = self.monitor.health.readings.waiting
        known = self.work_done.queued_prompts if math.isnan(waiting) else max(0.0, waiting)
        return int(min(self.active, known))

    def _snapshot(self) -> Snapshot | None:
        health = self.monitor.health
        if health.identity is None:
            return None
        capacity = health.identity.blocks_total * health.identity.block_size_tokens
        return Snapshot(
            readings=health.readings,
            work=self.work_done.totals(
                health.readings, time.monotonic(), prefills=self.role != DECODE, decodes=self.role != PREFILL
            ),
            waiting_requests=self._waiting(),
            waiting_tokens=self.work_done.queued_tokens,
            running_requests=max(0, self.active - self._waiting()),
            kv_tokens=capacity - self.ledger.free_blocks() * health.identity.block_size_tokens,
            kv_capacity_tokens=capacity,
        )
