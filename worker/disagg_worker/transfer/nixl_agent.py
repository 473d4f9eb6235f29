"""The door to NIXL: an agent that has one region of memory registered.

The package is optional. It is imported when the first agent is made, because that also loads UCX,
which reads its variables then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from disagg_worker.transfer.reach import Place
from disagg_worker.transfer.sender_timeouts import NixlFailed
from disagg_worker.transfer.ucx_report import Moved, Report
from disagg_worker.values.kv_blocks import Region

log = logging.getLogger(__name__)
_MAX_TAGS = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
Piece = tuple[int, int, int]
ResultT = TypeVar("ResultT")


class Agent(Protocol):
    """The part of an agent that transfers need."""

    name: str
    metadata: bytes
    region: Region

    def add_peer(self, metadata: bytes) -> str: ...
    def remove_peer(self, peer: str) -> None: ...
    def write(self, peer: str, source: list[Piece], peer_region: Region, target: list[Piece]) -> Any: ...
    def done(self, write: Any) -> bool:
        """Return whether a write is over. Raises NixlFailed if it has failed."""

    def forget(self, write: Any) -> None: ...
    def notify(self, peer: str, tag: bytes) -> None: ...
    def notified(self, tag: bytes) -> bool: ...
    def progress(self) -> None: ...
    def close(self) -> None: ...


def is_installed() -> bool:
    return importlib.util.find_spec("nixl") is not None


def place() -> Place:
    """Return where this process runs.

    By UCX, memory is shared by processes of one user that see each other, with a connection over
    their loopback interface.
    """
    try:
        machine = _BOOT_ID.read_text().strip()
        spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "ipc", "net")]
    except OSError:
        return Place(*(secrets.token_hex(8) for _ in range(3)))  # With nobody, as it cannot be told.
    words = machine, f"{machine} {spaces[0]}", " ".join([machine, *spaces, str(os.getuid())])
    return Place(*(hashlib.sha256(word.encode()).hexdigest()[:16] for word in words))


class _UcxLog:
    """The log of UCX in this process, a file in memory, unless the user wants it elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._report = Report()
        self._fd: int | None = None
        self._read_bytes = 0

    def open(self) -> None:
        with self._lock:
            if self._fd is None and "UCX_LOG_FILE" not in os.environ:
                self._fd = os.memfd_create("ucx-log")
                os.environ["UCX_LOG_FILE"] = f"/proc/self/fd/{self._fd}"
            os.environ.setdefault("UCX_PROTO_INFO", "y")

    def endpoints(self) -> frozenset[str]:
        """Return the kinds of endpoints that UCX has reported by now."""
        with self._lock:
            self._look()
            return self._report.endpoints

    def moved(self, size_bytes: int, endpoints: Iterable[str]) -> Moved | None:
        with self._lock:
            self._look()
            return self._report.moved(size_bytes, endpoints)

    def _look(self) -> None:
        if self._fd is None:
            return
        text = os.pread(self._fd, 1 << 20, self._read_bytes)
        text = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(text)
        for line in self._report.read(text.decode(errors="replace")):
            log.info("UCX: %s", line)


UCX_LOG = _UcxLog()


class NixlAgent:
    """Implements Agent by the UCX backend of NIXL.

    `devices` are the network devices that UCX may use, unless the user has named others.
    """

    def __init__(self, region: Region, devices: Sequence[str]) -> None:
        UCX_LOG.open()
        os.environ.setdefault("UCX_NET_DEVICES", ",".join(devices))
        os.environ.setdefault("UCX_MAX_RMA_RAILS", str(max(1, sum(":" in name for name in devices))))
        from nixl._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t

        logging.getLogger("nixl").setLevel(logging.WARNING)
        self.name = secrets.token_hex(16)
        self.region = region
        sync = nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        # A thread of NIXL's would poll without a pause: whoever waits for something polls himself.
        config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"], sync_mode=sync)
        self._agent: Any = nixl_agent(self.name, config)
        size = region.block_bytes * region.blocks
        self._registered = self._agent.register_memory([(region.address, size, region.device or 0, "")], _kind(region))
        self.metadata: bytes = self._agent.get_agent_metadata()
        self._lock = threading.Lock()
        self._tags: dict[bytes, None] = {}

    def add_peer(self, metadata: bytes) -> str:
        return _call(lambda: str(self._agent.add_remote_agent(metadata).decode()))

    def remove_peer(self, peer: str) -> None:
        _call(lambda: self._agent.remove_remote_agent(peer))

    def write(self, peer: str, source: list[Piece], peer_region: Region, target: list[Piece]) -> Any:
        def begin() -> Any:
            agent = self._agent
            ours = agent.get_xfer_descs(source, _kind(self.region))
            theirs = agent.get_xfer_descs(target, _kind(peer_region))
            handle = agent.initialize_xfer("WRITE", ours, theirs, peer)
            agent.transfer(handle)
            return handle

        return _call(begin)

    def done(self, write: Any) -> bool:
        state = _call(lambda: self._agent.check_xfer_state(write))
        if state not in ("DONE", "PROC"):
            raise NixlFailed("NIXL: the write has failed")
        return bool(state == "DONE")

    def forget(self, write: Any) -> None:
        _call(lambda: self._agent.release_xfer_handle(write))

    def notify(self, peer: str, tag: bytes) -> None:
        _call(lambda: self._agent.send_notif(peer, tag))

    def notified(self, tag: bytes) -> bool:
        """Return whether a peer has sent this tag, once."""
        with self._lock:
            self._take_tags()
            return self._tags.pop(tag, 0) is None

    def progress(self) -> None:
        """Do what peers wait for: take connections, and over TCP what they write."""
        with self._lock:
            if self._agent is not None:
                self._take_tags()

    def _take_tags(self) -> None:
        for tags in _call(lambda: self._agent.get_new_notifs()).values():
            self._tags |= dict.fromkeys(tags)
        while len(self._tags) > _MAX_TAGS:
            del self._tags[next(iter(self._tags))]

    def close(self) -> None:
        """Deregister the memory and close all connections. Nothing comes by this agent then."""
        with self._lock:
            agent, self._agent = self._agent, None
            agent.deregister_memory(self._registered)
            del agent


def _kind(region: Region) -> str:
    return "DRAM" if region.device is None else "VRAM"


def _call(what: Callable[[], ResultT]) -> ResultT:
    try:
        return what()
    except Exception as failure:  # Its errors have no common type.
        raise NixlFailed(f"NIXL: {failure or type(failure).__name__}") from None
