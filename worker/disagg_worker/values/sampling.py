"""PURE: How logits become a token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Structured:
    """What the output must match. kind: json_schema, regex, grammar (Lark, as llguidance reads it),
    choice (value: a JSON list).
    """

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to turn logits into a token.

    `seed` is always set: a token is a pure function of (logits, these, position).
    """

    seed: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # number of alternatives to report, None: report nothing
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    structured: Structured | None = None
