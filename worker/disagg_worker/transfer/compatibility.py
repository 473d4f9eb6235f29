"""PURE: The compatibility hash, which must be equal on two workers before KV may move between them
(docs/protocol.md).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from disagg_wire.protocol import LAYOUT_VERSION, PROTOCOL_VERSION
from disagg_worker.values.layouts import KvLayout


def compat_hash(model_digest: str, layout: KvLayout) -> str:
    """Return the hex SHA-256 of protocol version, layout version, model and cache shape."""
    shared = {"protocol": PROTOCOL_VERSION, "layout_version": LAYOUT_VERSION, "model": model_digest, **asdict(layout)}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
