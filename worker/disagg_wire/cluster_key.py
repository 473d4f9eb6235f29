"""The cluster key that routers and workers share, and the bearer token that is derived from it.

docs/protocol.md specifies both.
"""

import hashlib
import hmac
from pathlib import Path

MIN_KEY_BYTES = 32
_BEARER_PURPOSE = b"disagg-http-v1"


class ClusterKeyError(ValueError):
    """Raised when a key file cannot be read, or its key is too short to protect anything."""


def read_key(file: Path) -> bytes:
    """Return the key that a file holds. Raises ClusterKeyError: there is no default key."""
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise ClusterKeyError(str(error)) from None
    if len(key) < MIN_KEY_BYTES:
        raise ClusterKeyError(f"{len(key)} bytes, at least {MIN_KEY_BYTES} are needed")
    return key


def bearer_of(key: bytes) -> str:
    """Return the bearer token that opens /internal/ on routers and workers.

    It is an HMAC-SHA256 in hexadecimal digits.
    """
    return hmac.new(key, _BEARER_PURPOSE, hashlib.sha256).hexdigest()
