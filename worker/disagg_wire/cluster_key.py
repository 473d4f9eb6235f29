"""PURE: The cluster key and the bearer token that is derived from it (docs/protocol.md)."""

import hashlib
import hmac

MIN_KEY_BYTES = 32
_BEARER_PURPOSE = b"disagg-http-v1"


class ClusterKeyError(ValueError):
    """Raised for a key that is too short to protect anything."""


def checked_key(content: bytes) -> bytes:
    """Return the key that a key file holds.

    Raises ClusterKeyError when it is shorter than MIN_KEY_BYTES.
    """
    key = content.strip()
    if len(key) < MIN_KEY_BYTES:
        raise ClusterKeyError(f"{len(key)} bytes, at least {MIN_KEY_BYTES} are needed")
    return key


def bearer_of(key: bytes) -> str:
    """Return the bearer token that opens /internal/ on routers and workers: HMAC-SHA256 in
    hexadecimal digits.
    """
    return hmac.new(key, _BEARER_PURPOSE, hashlib.sha256).hexdigest()
