"""PURE: The profile of a model with experts, whose decode time is not linear in the batch size.

A step reads the experts that its sequences use: `E (1 - (1 - k/E)^B)` of E for B sequences that use
k each, if routing is uniform. This is a curve: DeepSeek-V3 reads an eighth of its experts for 4
sequences, half for 22 and nine tenths for 73. Simulator, autoscaler and profile files only know a
step as `d + e*B + f*K`. Therefore the coefficients are the tangent at one batch size: exact there
and too slow elsewhere, but never too fast, because the curve is concave. `step_s` and the other
methods that the planner calls are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from disagg_operator.performance.profile import Profile

_TOLERANCE = 1e-9
ALL_EXPERTS = 1e9
"""A number of sequences that use all experts."""


@dataclass(frozen=True, slots=True)
class ExpertProfile(Profile):
    """A profile of a worker that serves a model with experts.

    A prefill batch can't be faster than reading the weights. The prompts of a batch share the
    reading, so no coefficient includes it; a prompt alone pays for all of it.

    With more than one rank each GPU computes attention, and everything else that all tokens need,
    for its own sequences. The coefficients then assume that the GPUs have equal shares of the load.
    A prompt alone uses a single GPU for its attention and for `own_s_per_token` of its matrices,
    and no request can hold more than the cache of one GPU.
    """

    routed_s: float = 0.0
    """The time in seconds to read all routed experts of all layers once."""
    share: float = 0.5
    """The share of the routed experts that one token uses, less than 1."""
    tangent: float = ALL_EXPERTS
    """The number of sequences at which `d_s` and `e_s_per_sequence` touch the curve.

    Initially it is so large that all experts are read.
    """
    weights_s: float = 0.0
    """The seconds of a batch to read the weights that all tokens need and to choose experts."""
    matrix_s_per_token: float = 0.0
    """The seconds per token to multiply by all weights, which are a part of `b_s_per_token`."""
    ranks: int = 1
    """The number of GPUs that compute attention for their own sequences."""
    own_s_per_token: float = 0.0
    """The seconds per token, on all GPUs, to multiply by the weights that all tokens need."""

    def _read_s(self, tokens: float) -> float:
        """Return the time in seconds to read the routed experts that a number of tokens use."""
        return self.routed_s * (1 - self._missed(tokens))

    def _slope_s(self, sequences: float) -> float:
        return -self.routed_s * math.log1p(-self.share) * self._missed(sequences)

    def _missed(self, tokens: float) -> float:
        """Return the share of the experts that a number of tokens leave unused."""
        found: float = (1 - self.share) ** max(1.0, tokens)
        return found

    def around(self, sequences: float) -> Self:
        new, old = max(1.0, sequences), self.tangent
        slope = self._slope_s(new)
        base_s = self.d_s - self._read_s(old) + self._slope_s(old) * old
        per_sequence_s = max(0.0, self.e_s_per_sequence - self._slope_s(old))
        return replace(
            self, d_s=base_s + self._read_s(new) - slope * new, e_s_per_sequence=per_sequence_s + slope, tangent=new
        )

    @property
    def first_guess(self) -> float:
        return ALL_EXPERTS  # the curve is concave, so a search by tangents moves down

    def step_s(self, sequences: float, kv_tokens: float) -> float:
        many = max(1.0, sequences)
        line_s = self._read_s(self.tangent) + self._slope_s(self.tangent) * (many - self.tangent)
        # A step has at least one sequence.
        return Profile.step_s(self, many, kv_tokens) - (line_s - self._read_s(many))

    def sequences_within(self, step_s: float, kv_per_sequence: float) -> float:
        """Return the number of sequences whose step takes `step_s`.

        It is less than 1 if even a step of one sequence takes longer.
        """
        one_s = self.step_s(1, kv_per_sequence)
        if step_s <= one_s:
            return step_s / one_s
        low = max(1.0, Profile.sequences_within(self, step_s, kv_per_sequence))  # the tangent is slower than the curve
        high = 2 * low
        while self.step_s(high, high * kv_per_sequence) < step_s:
            high *= 2
        while high - low > _TOLERANCE * high:
            middle = (low + high) / 2
            if self.step_s(middle, middle * kv_per_sequence) <= step_s:
                low = middle
            else:
                high = middle
        return low

    def isolated_s(self, tokens: float) -> float:
        reading_s = self.weights_s + self._read_s(tokens)
        matrices_s = (self.matrix_s_per_token + (self.ranks - 1) * self.own_s_per_token) * tokens
        return (
            self.prefill_s(tokens, tokens * tokens)
            + self.lone_s(tokens, tokens * tokens)
            + max(0.0, reading_s - matrices_s)
        )

    def lone_s(self, tokens: float, tokens_squared: float) -> float:
        return (self.ranks - 1) * (self.own_s_per_token * tokens + self.c_s_per_token2 * tokens_squared)

    @property
    def request_tokens(self) -> float:
        return self.kv_tokens / self.ranks

    def unread_s(self, sequences: float) -> float:
        return self.routed_s - self._read_s(sequences)

    def reading_s(self, sequences: float) -> float:
        line_s = self._read_s(self.tangent) - self._slope_s(self.tangent) * self.tangent
        return self.d_s - line_s + self._read_s(sequences)

    def of_one_rank(self, prompt_tokens: float) -> tuple[int, float]:
        return self.ranks, self.own_s_per_token + self.c_s_per_token2 * prompt_tokens

    @property
    def full_tokens(self) -> float:
        return (self.weights_s + self.routed_s) / self.matrix_s_per_token

    def fit_error(self, sequences: float, kv_per_sequence: float) -> float:
        """Return the relative error of the coefficients for such a step; 0.1 is 10 % too slow."""
        kv_tokens = sequences * kv_per_sequence
        return Profile.step_s(self, sequences, kv_tokens) / self.step_s(sequences, kv_tokens) - 1
