"""Tests of what a key may still do: a table of calls, and the headers that tell of it."""

from __future__ import annotations

from functools import partial

import pytest

from disagg_router.admission.quotas import LimitReached, Quota, Quotas
from disagg_router.key_file import ANYBODY, ApiKey, KeyLimits
from disagg_wire.rate_limits import Limited


def key(name: str = "k", **limits: int) -> ApiKey:
    return ApiKey(key=name, limits=KeyLimits.model_validate(limits))


def refusal(quota: Quota, now_s: float, prompt: int | None = None) -> LimitReached:
    call = partial(quota.begin, now_s) if prompt is None else partial(quota.prompt, prompt, now_s)
    with pytest.raises(LimitReached) as caught:
        call()
    assert (caught.value.status, caught.value.code, caught.value.kind) == (
        429,
        "rate_limit_exceeded",
        "rate_limit_error",
    )
    return caught.value


def test_without_limits_nothing_is_refused_and_nothing_told() -> None:
    for quota in (Quota(ANYBODY, 0.0), Quota(key(), 0.0)):
        for _ in range(100):
            quota.begin(0.0)
            quota.prompt(10**6, 0.0)
            quota.spend(10**6, 0.0)
        assert (quota.running, quota.headers(0.0)) == (100, [])


def test_requests_in_a_minute() -> None:
    quota = Quota(key(requestsPerMinute=2), 0.0)
    for _ in range(2):
        quota.begin(0.0)
        quota.end()
    error = refusal(quota, 0.5)
    assert (error.limited, error.retry_after_s, error.final, quota.running) == (Limited.REQUESTS, 30, False, 0)
    assert "2 requests a minute; try again in 29.5s" in str(error)
    quota.begin(30.0)


def test_requests_at_once_and_one_that_is_refused_costs_none_of_the_minute() -> None:
    quota = Quota(key(concurrency=2, requestsPerMinute=3), 0.0)
    quota.begin(0.0)
    quota.begin(0.0)
    for _ in range(5):
        error = refusal(quota, 0.0)
        assert (error.limited, error.retry_after_s) == (Limited.CONCURRENCY, 1)
    quota.end()
    quota.begin(0.0)
    quota.end()
    assert refusal(quota, 0.0).limited == Limited.REQUESTS


def test_tokens_of_prompts_and_of_answers() -> None:
    quota = Quota(key(tokensPerMinute=60), 0.0)
    quota.begin(0.0)
    quota.prompt(50, 0.0)
    error = refusal(quota, 0.0, prompt=15)
    assert (error.limited, error.retry_after_s) == (Limited.TOKENS, 5)
    quota.spend(40, 0.0)  # an answer that runs is not cut off
    error = refusal(quota, 0.0)
    assert (error.limited, error.retry_after_s, error.final) == (Limited.TOKENS, 30, False)
    quota.begin(30.0)
    error = refusal(quota, 1000.0, prompt=61)
    assert (error.final, error.retry_after_s) == (True, 60)
    assert "the prompt has 61 tokens, and this API key has 60 a minute" in str(error)
    assert (b"x-should-retry", b"false") in quota.headers(1000.0, error)


def test_what_the_client_is_told() -> None:
    quota = Quota(key(requestsPerMinute=60, tokensPerMinute=6000), 0.0)
    quota.begin(0.0)
    quota.prompt(50, 0.0)
    quota.spend(7000, 0.0)
    assert dict(quota.headers(0.0)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
        b"x-ratelimit-limit-tokens": b"6000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1m10.5s",
    }


def test_other_limits_hold_at_once_and_what_was_used_stays_used() -> None:
    quotas = Quotas([key("a", requestsPerMinute=1), key("b", concurrency=1)], 0.0)
    a, b = quotas.by_key[b"a"], quotas.by_key[b"b"]
    a.begin(0.0)
    b.begin(0.0)
    quotas.change([key("a", requestsPerMinute=5), key("b", concurrency=2), key("c")], 0.0)
    assert (quotas.by_key[b"a"], quotas.by_key[b"b"], list(quotas.by_key)) == (a, b, [b"a", b"b", b"c"])
    assert refusal(a, 0.0).limited == Limited.REQUESTS
    b.begin(0.0)
    assert refusal(b, 0.0).limited == Limited.CONCURRENCY
    quotas.change([key("a")], 0.0)
    a.begin(0.0)
    assert (list(quotas.by_key), a.headers(0.0)) == ([b"a"], [])
