"""The process behind the HTTP server: the bundled worker, or the adapter of another engine."""

from __future__ import annotations

import hmac
import time
from abc import ABC, abstractmethod
from typing import Any

from starlette.requests import Request

from disagg_protocol.bodies import DecodeRequest, PrefillRequest
from disagg_protocol.departure import Departure
from disagg_protocol.keep_limits import KeepLimits
from disagg_protocol.kept_answers import KeptAnswers
from disagg_protocol.requests import Job, RunningRequests
from disagg_protocol.ticket import Ticket
from disagg_wire.cluster_key import bearer_of
from disagg_wire.protocol import DRAINING, FEATURE_RESUME, READY, STARTING
from disagg_wire.roles import Role
from disagg_wire.room import Room


class RoleChanging(Exception):
    """Raised when a change to another role is in progress."""


class OtherModel(Exception):
    """Raised when a request is for other weights than those that are here."""


class Endpoint(RunningRequests, ABC):
    """A process that serves the protocol.

    It is `starting` until it can serve, then `ready`; it is `draining` before it ends, while it has
    notice to leave, and while it changes its role.
    """

    def __init__(self, key: bytes, role: Role, incarnation: str, keeps: KeepLimits | None = None) -> None:
        super().__init__()
        self.answers = KeptAnswers(keeps or KeepLimits())
        self.key = key
        self.role: Role = role
        self.role_epoch = 0
        self.changing_to: Role | None = None
        self.incarnation = incarnation
        self.draining = False
        self.departure = Departure()
        self.failed: str = ""
        self.tokenizer: dict[str, Any] = {}
        self._bearer = b"Bearer " + bearer_of(key).encode()

    def authorized(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        return hmac.compare_digest(given, self._bearer)

    @property
    def state(self) -> str:
        if self.draining or self.changing_to is not None or (self.serving and self.on_notice):
            return DRAINING
        return READY if self.serving else STARTING

    @property
    def ready(self) -> bool:
        """Whether the process is ready for its requests, be it on notice or not."""
        return self.serving and not self.draining and self.changing_to is None

    # ---- How it leaves ----

    @property
    def on_notice(self) -> bool:
        return self.departure.on_notice(time.monotonic())

    def drain(self, lease_s: float) -> bool:
        """Take nothing new for `lease_s` seconds; with 0 take requests again.

        Returns whether it has no requests.
        """
        self.departure.give_notice(lease_s, time.monotonic())
        return self.active == 0

    def end(self, timeout_s: float) -> float:
        """Begin to end, and return how many of `timeout_s` seconds the running requests have."""
        self.draining = True
        return self.departure.end(timeout_s, time.monotonic())

    @property
    def takes_last_resort(self) -> bool:
        """Whether it takes requests although it is ending, from routers that have nobody else."""
        able = self.draining and self.serving and self.changing_to is None and not (self.failed or self.problem)
        return able and self.departure.takes(time.monotonic())

    @property
    def needed_for_s(self) -> float:
        """The seconds that it should stay for such routers although it has no requests."""
        return self.departure.needed_for_s(time.monotonic()) if self.takes_last_resort else 0.0

    @property
    def keeps_streams(self) -> frozenset[str]:
        """The feature of a process whose streams can be resumed."""
        return frozenset((FEATURE_RESUME,) if self.answers.limits.keep_s > 0 else ())

    def role_status(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "role_epoch": self.role_epoch,
            "changing_to": self.changing_to,
            "incarnation": self.incarnation,
            "state": self.state,
            "running_requests": self.active,
        }

    @property
    @abstractmethod
    def serving(self) -> bool:
        """Whether the model is loaded and requests can be taken."""

    @property
    @abstractmethod
    def problem(self) -> str:
        """The reason why the process should be restarted, or "" while it is well."""

    @property
    @abstractmethod
    def progress(self) -> str:
        """A few words on what is still to be done before it can serve; "" if there are none."""

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether there are as many requests as can run and wait."""

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """The longest sequence in tokens."""

    @property
    @abstractmethod
    def model_digest(self) -> str:
        """The digest of the weights, which `info` reports."""

    @property
    @abstractmethod
    def compat(self) -> str:
        """The compatibility hash of model and cache."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Return the answer to `info`."""

    @abstractmethod
    def metrics_page(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in a format that the header Accept asks for, and its content type."""

    @abstractmethod
    def refused(self) -> None:
        """Count a request that found no room."""

    @abstractmethod
    def change_role(self, wanted: Role, deadline_s: float) -> bool:
        """Change the role and return whether the process has it already.

        Raises RoleChanging if a change to another role is in progress, and InvalidInput if this
        process cannot take the role.
        """

    @abstractmethod
    def limit_prefill(self, room: Room) -> None:
        """Note the room of decode elsewhere."""

    @abstractmethod
    async def start_decode(self, request: DecodeRequest, due_s: float | None) -> Job:
        """Start to decode; with mode local the first token is due at the monotonic time `due_s`.

        Raises NoCapacity or InvalidInput.
        """

    @abstractmethod
    async def start_prefill(self, request: PrefillRequest, ticket: Ticket | None, due_s: float | None) -> Job:
        """Start to prefill; the first token is due at the monotonic time `due_s`.

        Raises NoCapacity or InvalidInput.
        """
