"""PURE: What workers are told of who asks: the scope within which requests share cached KV.

A scope has two parts. The first one names the API key, and with it whose share of the work a
request takes; both together, the key and the client's `cache_salt`, say what it shares KV with.
Workers learn neither the key nor the salt. Routers of earlier releases sent one part only.
"""

_LIMIT = 32


def scope_of(key: str, both: str) -> str:
    """Return the scope of digests in hex: of the key ("" for none), and of key and salt."""
    return f"{key[:_LIMIT]}:{both}"


def share_of(scope: str) -> str:
    """Return the name under which the requests of a scope share work with those of others.

    All scopes of one API key have the same, so that no client gets more by many salts.
    """
    return scope.partition(":")[0]
