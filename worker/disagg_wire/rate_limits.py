"""PURE: The words by which clients learn of their limits, as OpenAI's API has them."""

from enum import StrEnum

RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
"""The error code of a request that is over a limit of its API key."""
NOT_AGAIN = "x-should-retry"
"""The header that clients of OpenAI's API obey before they look at the status."""


class Limited(StrEnum):
    """What a limit is on."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


def header_of(what: str, limited: Limited) -> str:
    """Return the name of a header; `what` is `limit`, `remaining` or `reset`."""
    return f"x-ratelimit-{what}-{limited}"


def span_text(seconds: float) -> str:
    """Return a span of time as OpenAI writes it, such as 6m0s or 120ms."""
    thousandths = max(0, round(seconds * 1000))
    if thousandths < 1000:
        return f"{thousandths}ms"
    whole, rest = divmod(thousandths, 1000)
    minutes, whole = divmod(whole, 60)
    text = f"{whole}.{rest:03d}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{text}" if minutes else text
