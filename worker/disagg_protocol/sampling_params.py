"""PURE: The parameters of sampling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Structured:
    """A format that the output must match."""

    kind: str
    """`json_schema`, `regex`, `grammar` (Lark, as llguidance reads it) or `choice`."""
    value: str
    """The schema, expression or grammar; for `choice`, a JSON list."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The parameters that turn logits into a token.

    The seed is always set, so that a token is a pure function of (logits, parameters, position).
    """

    seed: int
    max_new_tokens: int
    """The most output tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability."""
    top_k: int = 0
    """Sample from this many of the most likely tokens; 0: no limit."""
    min_p: float = 0.0
    """The least probability of a token, as a share of the most likely token's."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that has been generated."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it has been generated."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and the output less likely when above 1."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Values that are added to logits: (token ID, value)."""
    logprobs: int | None = None
    """The number of alternatives to report with each token; None reports no logprobs."""
    stop_token_ids: tuple[int, ...] = ()
    """Token IDs that end the output."""
    min_tokens: int = 0
    """Output tokens before which a stop token cannot be sampled."""
    structured: Structured | None = None
    """The format that the output must match."""
