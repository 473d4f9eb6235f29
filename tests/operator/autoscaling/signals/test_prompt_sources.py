"""Tests of where the prompt tokens of decode workers came from."""

from __future__ import annotations

import math

import pytest

from disagg_operator.autoscaling.signals.prompt_sources import prompt_tokens
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_operator.status.effectiveness import PromptTokens

SERIES = "disagg_worker_prompt_tokens_by_source_total"


def sample(**sources: float) -> Sample:
    return Sample(0.0, {f"{SERIES}:{source}": n for source, n in sources.items()})


@pytest.mark.parametrize(
    ("found", "tokens"),
    [
        (sample(local_compute=1, local_cache_hit=2, external_kv_transfer=3), PromptTokens(1, 5)),
        (sample(local_compute=1, local_cache_hit=math.nan, external_kv_transfer=3), PromptTokens(1, 3)),
        (sample(local_compute=1, external_kv_transfer=3), PromptTokens(1, 3)),
        (sample(local_compute=math.nan, local_cache_hit=2, external_kv_transfer=3), None),
        (sample(local_compute=1, local_cache_hit=2, external_kv_transfer=math.nan), None),
        (sample(), None),
        (None, None),
    ],
)
def test_what_is_not_known_counts_nowhere(found: Sample | None, tokens: PromptTokens | None) -> None:
    assert prompt_tokens({"p": found}) == ({} if tokens is None else {"p": tokens})
