"""PURE: What moves the KV of a pair of workers, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_router.workers.worker_info import Worker
from disagg_wire.engines import CONFIGURED, EVIDENCE, PROVED, TRANSPORTS


@dataclass(frozen=True, slots=True)
class Link:
    """The transport of a pair, in the words of disagg_wire.engines."""

    transport: str
    """One of TRANSPORTS; empty if it is not known."""
    evidence: str
    """One of EVIDENCE."""


def declared(prefill: Worker, decode: Worker) -> Link:
    """Return what the two workers say of themselves.

    A pair can use only what both have, so the slower transport counts, and it is proved only if
    both have proved theirs.
    """
    known = [TRANSPORTS.index(w.transport) for w in (prefill, decode) if w.transport in TRANSPORTS]
    proved = all(w.evidence == PROVED for w in (prefill, decode))
    return Link(TRANSPORTS[max(known)] if len(known) == 2 else "", PROVED if proved else CONFIGURED)


def reported(event: Mapping[str, Any]) -> Link | None:
    """Return what the event of a transfer says, or None if it names no transport."""
    transport, evidence = event.get("transport"), event.get("evidence")
    if transport not in TRANSPORTS:
        return None
    return Link(transport, evidence if evidence in EVIDENCE else CONFIGURED)
