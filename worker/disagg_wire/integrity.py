"""PURE: The checks of KV frames of version 2 (docs/protocol.md): AES-GMAC with a session key, which
also notices what an attacker changes, and CRC-32C, which notices damage.
"""

from typing import Literal

Integrity = Literal["mac", "crc32c"]
MAC: Integrity = "mac"
CRC32C: Integrity = "crc32c"
INTEGRITIES: tuple[Integrity, ...] = (MAC, CRC32C)
