"""PURE: Conversion of Kubernetes quantities to numbers."""

from __future__ import annotations

import re
from decimal import Decimal

_SUFFIXES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


def quantity_bytes(quantity: str | int) -> int:
    """Return a Kubernetes quantity such as 512Mi in bytes. Raises ValueError."""
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKMGT]?i?)", str(quantity))
    if parts is None or parts[2] not in _SUFFIXES:
        raise ValueError(f"{quantity!r} is not a quantity of bytes")
    return int(Decimal(parts[1]) * _SUFFIXES[parts[2]])
