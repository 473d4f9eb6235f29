"""PURE: The offer in the ticket of a decode worker to a prefill worker that reaches its memory: the
blocks into which it may write, and how NIXL finds them.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from disagg_protocol.ticket import TicketError
from disagg_wire.engines import TRANSPORTS
from disagg_worker.values.kv_blocks import Region

_MAX_METADATA_BYTES = 64 << 10
_MAX_NAME_CHARS = 128
_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer, which holds for one transfer."""

    agent: str
    """The name of the NIXL agent of decode."""
    metadata: bytes
    """How the agent is reached, and by which keys its memory is written."""
    transport: str
    """The transport that both workers have."""
    region: Region
    """The registered memory."""
    blocks: tuple[int, ...]
    """The blocks of the region for the KV, in the order of the sequence."""

    def encode(self) -> str:
        """Return the offer as the text that a ticket carries."""
        region = self.region
        content = {
            "agent": self.agent,
            "metadata": base64.b64encode(self.metadata).decode(),
            "transport": self.transport,
            "region": [region.address, region.block_bytes, region.blocks, region.device],
            "blocks": self.blocks,
        }
        return json.dumps(content, separators=(",", ":"))


def decode_offer(text: str) -> Offer:
    """Parse the offer of a verified ticket. Raises TicketError."""
    try:
        content = json.loads(text)
        address, block_bytes, blocks, device = content["region"]
        region = Region(
            _number(address), _number(block_bytes), _number(blocks), None if device is None else _number(device)
        )
        offer = Offer(
            agent=_name(content["agent"]),
            metadata=base64.b64decode(content["metadata"], validate=True),
            transport=content["transport"],
            region=region,
            blocks=tuple(_number(block) for block in content["blocks"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise TicketError("ticket.offer: is malformed") from None
    if offer.transport not in TRANSPORTS or len(offer.metadata) > _MAX_METADATA_BYTES:
        raise TicketError("ticket.offer: is malformed")
    if any(block >= region.blocks for block in offer.blocks) or region.block_bytes == 0:
        raise TicketError("ticket.offer: blocks outside of the region")
    return offer


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        raise ValueError("no number")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARS:
        raise ValueError("no name")
    return value
