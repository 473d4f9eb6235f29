"""The decode half of one transfer by NIXL: what prefill says of its writes, and the check of the
blocks that lie in their place.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Mapping
from typing import Any

from disagg_protocol.ticket import Ticket
from disagg_wire import codes
from disagg_worker.transfer import frame_socket
from disagg_worker.transfer.frames import TAG_BYTES, FrameError, FrameType, Header
from disagg_worker.transfer.landing import FROZEN_S, RELEASE_S, Landing
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import block_tag
from disagg_worker.transfer.ucx_report import Moved, moved_of
from disagg_worker.values.kv_blocks import KvBlocks
from disagg_worker.values.layouts import KvLayout


class WriteIntake:
    """The transfer of a ticket with an offer. Until WRITES has come, it is one over TCP."""

    def __init__(self, landing: Landing, ticket: Ticket, layout: KvLayout) -> None:
        self._landing = landing
        self._ticket = ticket
        self._layout = layout
        self._lock = threading.Lock()
        self._link: SealedSocket | None = None
        self._called_off = False
        self.key = b""
        """The key of the tags of blocks."""

    @property
    def begun(self) -> bool:
        """Whether prefill may write."""
        return self._link is not None

    def takes(self, link: SealedSocket, header: Header, payload: bytes) -> bool:
        """Take a frame, if it is one of writes. Raises FrameError or OSError."""
        if header.type is FrameType.WRITES:
            self._landing.begin(frame_socket.parse_json(payload))
            with self._lock:
                self._link = link
                link.send_json(FrameType.READY, {})
            return True
        if header.type is FrameType.RELEASED:
            if self._landing.begun:
                self._landing.released(parse_released(payload))
            raise FrameError("prefill has given the writes up")
        return header.type is FrameType.WRITTEN and self._landing.begun

    def check(self, header: Header, tags: bytes) -> None:
        """Verify blocks by the tags that prefill has computed.

        It computes none of blocks in a device's memory, and there none can be verified.
        """
        if not tags:
            return
        if len(tags) != header.n_blocks * TAG_BYTES:
            raise FrameError(f"{len(tags)} bytes of tags for {header.n_blocks} blocks")
        if self._landing.generation.agent.region.device is not None:
            return
        blocks = self._landing.reservation.blocks(header.first_block, header.n_blocks)
        for i, block in enumerate(blocks.ids):
            whole = KvBlocks(blocks.cache, (block,))
            parts = (whole.views(layer)[0] for layer in range(self._layout.layers))
            found = block_tag(self.key, self._ticket.integrity, header.first_block + i, parts)
            if not hmac.compare_digest(found, tags[i * TAG_BYTES :][:TAG_BYTES]):
                raise FrameError(f"block {header.first_block + i} is not what was written")

    def committed(self, content: Mapping[str, Any], timeout_s: float) -> Moved | None:
        """Note that all writes are over, of which NIXL must have told this end, too."""
        if not self._landing.begun:
            return None
        self._landing.quiet = True
        self._landing.await_notification(self._ticket.transfer_id.encode(), timeout_s)
        return moved_of(content.get("moved"))

    def call_off(self) -> bool:
        """Tell prefill to stop, once it may write; return whether it was told."""
        with self._lock:
            if self._link is None:
                return False
            if not self._called_off:
                self._called_off = True
                refuse(self._link, codes.CANCELLED, "the request was cancelled")
            return True


def refuse(link: SealedSocket, code: str, message: str) -> None:
    """Tell prefill why the transfer ends, if it is still there."""
    try:
        link.send_json(FrameType.ERROR, {"code": code, "message": message, "retryable": True})
    except OSError:
        pass


def await_release(link: SealedSocket, landing: Landing) -> None:
    """Read on until a prefill worker that may still write says that it does so no more.

    If it does not, it is silent.
    """
    started_s = time.monotonic()
    while (waited_s := time.monotonic() - started_s) < RELEASE_S or (waited_s < FROZEN_S and landing.may_be_told()):
        try:
            header = link.header()
            if header.type is FrameType.LAYER:
                break
            payload = link.control(header)
        except TimeoutError:
            continue
        except FrameError:
            break  # What it sends can no longer be read.
        except OSError:
            landing.silent(left=True)
            return
        if header.type is FrameType.RELEASED:
            landing.released(parse_released(payload))
            return
    landing.silent()


def parse_released(payload: bytes) -> bool:
    """Return whether all that was written has arrived. Raises FrameError."""
    return frame_socket.parse_json(payload).get("flushed") is True
