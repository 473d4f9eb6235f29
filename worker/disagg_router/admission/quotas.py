"""PURE: What each API key may still do at this router."""

from __future__ import annotations

import math
from collections.abc import Iterable

from disagg_router.admission.token_bucket import TokenBucket
from disagg_router.errors import ApiError
from disagg_router.key_file import ApiKey
from disagg_wire.rate_limits import NOT_AGAIN, RATE_LIMIT_EXCEEDED, Limited, header_of, span_text


class LimitReached(ApiError):
    """A request that is over a limit of its API key. `final`: it will be at any time."""

    def __init__(self, limited: Limited, message: str, wait_s: float) -> None:
        self.limited = limited
        self.final = math.isinf(wait_s)
        retry_after_s = 60 if self.final else max(1, math.ceil(wait_s))
        super().__init__(429, message, code=RATE_LIMIT_EXCEEDED, retry_after_s=retry_after_s)


class Quota:
    """One key, its limits, and what it has used of them. All times are monotonic.

    What runs is never cut off: tokens that are generated are taken when they come, and overdraw the
    bucket if need be. The next request then waits until that is made up for.
    """

    def __init__(self, key: ApiKey, now_s: float) -> None:
        self.key = key
        self.running = 0
        self._buckets: dict[Limited, TokenBucket] = {}
        self.change(key, now_s)

    def change(self, key: ApiKey, now_s: float) -> None:
        """Let other limits hold from now on; what was used stays used."""
        self.key = key
        limits = {Limited.REQUESTS: key.limits.requests_per_minute, Limited.TOKENS: key.limits.tokens_per_minute}
        for limited, per_minute in limits.items():
            if per_minute is None:
                self._buckets.pop(limited, None)
            elif limited in self._buckets:
                self._buckets[limited].resize(per_minute, now_s)
            else:
                self._buckets[limited] = TokenBucket(per_minute, now_s)

    def begin(self, now_s: float) -> None:
        """Count a request as running; `end` is to be called for it. Raises LimitReached."""
        most = self.key.limits.concurrency
        if most is not None and self.running >= most:
            message = f"{most} requests of this API key run, which is its limit; try again when one has ended"
            raise LimitReached(Limited.CONCURRENCY, message, 1.0)
        # Whoever owes tokens learns it before anybody reads what he sends.
        if (tokens := self._buckets.get(Limited.TOKENS)) is not None and (wait_s := tokens.take(0, now_s)):
            raise self._over(Limited.TOKENS, wait_s)
        if (requests := self._buckets.get(Limited.REQUESTS)) is not None and (wait_s := requests.take(1, now_s)):
            raise self._over(Limited.REQUESTS, wait_s)
        self.running += 1

    def end(self) -> None:
        """Count a request as over."""
        self.running -= 1

    def prompt(self, tokens: int, now_s: float) -> None:
        """Take the tokens of a prompt, which then is computed. Raises LimitReached."""
        bucket = self._buckets.get(Limited.TOKENS)
        wait_s = 0.0 if bucket is None else bucket.take(tokens, now_s)
        if math.isinf(wait_s):
            most = self.key.limits.tokens_per_minute
            message = f"the prompt has {tokens} tokens, and this API key has {most} a minute; send less"
            raise LimitReached(Limited.TOKENS, message, wait_s)
        if wait_s:
            raise self._over(Limited.TOKENS, wait_s)

    def spend(self, tokens: int, now_s: float) -> None:
        """Take tokens that were generated."""
        if (bucket := self._buckets.get(Limited.TOKENS)) is not None:
            bucket.spend(tokens, now_s)

    def headers(self, now_s: float, refused: LimitReached | None = None) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell the client of its limits."""
        found: dict[str, str] = {}
        for limited, bucket in self._buckets.items():
            found[header_of("limit", limited)] = str(bucket.per_minute)
            found[header_of("remaining", limited)] = str(bucket.remaining(now_s))
            found[header_of("reset", limited)] = span_text(bucket.full_in_s(now_s))
        if refused is not None and refused.final:
            found[NOT_AGAIN] = "false"
        return [(name.encode(), value.encode()) for name, value in found.items()]

    def _over(self, limited: Limited, wait_s: float) -> LimitReached:
        most = self._buckets[limited].per_minute
        message = f"this API key has {most} {limited} a minute; try again in {span_text(wait_s)}"
        return LimitReached(limited, message, wait_s)


class Quotas:
    """The quotas of all keys."""

    def __init__(self, keys: Iterable[ApiKey], now_s: float) -> None:
        self.by_key: dict[bytes, Quota] = {}
        self.change(keys, now_s)

    def change(self, keys: Iterable[ApiKey], now_s: float) -> None:
        """Let these be the keys. Those that stay keep what they have used."""
        found: dict[bytes, Quota] = {}
        for key in keys:
            raw = key.key.encode()
            quota = self.by_key.get(raw)
            if quota is None:
                quota = Quota(key, now_s)
            else:
                quota.change(key, now_s)
            found[raw] = quota
        self.by_key = found
