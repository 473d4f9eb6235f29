"""PURE: a profile of a model with experts, whose decode step is no line in the batch.

A step reads the experts that its sequences take: `E (1 - (1 - k/E)^B)` of E for B sequences that
take k each, if routing is even. That bends: DeepSeek-V3 reads an eighth of its experts for 4
sequences, half for 22 and nine tenths for 73. Simulator, autoscaler and files know a step as `d +
e*B + f*K` only. So the coefficients are the tangent at one batch: exact there and too slow
elsewhere, never too fast, since the curve bends downwards. `step_s` and what the planner asks
besides are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from disagg_operator.performance.profile import Profile

_TOLERANCE = 1e-9
_ALL = 1e9  # sequences, which take all experts


@dataclass(frozen=True, slots=True)
class ExpertProfile(Profile):
    """`routed_s`: to read all routed experts of all layers once; `share`: of them that one token
    takes, less than 1. `tangent`: the sequences at which `d_s` and `e_s_per_sequence` touch the
    curve; at first where all experts are read.

    Prefill: a batch can't be faster than reading the weights, `weights_s` for those that every
    token needs, with choosing the others; `matrix_s_per_token` is the part of `b_s_per_token` that
    multiplies by them. Prompts in a batch share the reading, so it is in no coefficient; one alone
    pays it.

    `ranks`: more than one where each GPU computes attention, and whatever else all tokens need, for
    sequences of its own. Coefficients then say what it takes if the GPUs have equal shares. A
    prompt alone has one of them only, for `own_s_per_token` of its matrices and for its attention,
    and no request can hold more than one GPU's cache.
    """

    routed_s: float = 0.0
    share: float = 0.5
    tangent: float = _ALL
    weights_s: float = 0.0
    matrix_s_per_token: float = 0.0
    ranks: int = 1
    own_s_per_token: float = 0.0

    def _read_s(self, tokens: float) -> float:
        """The routed experts that so many tokens take."""
        return self.routed_s * (1 - self._missed(tokens))

    def _slope_s(self, sequences: float) -> float:
        return -self.routed_s * math.log1p(-self.share) * self._missed(sequences)

    def _missed(self, tokens: float) -> float:
        """The share of the experts that so many tokens leave alone."""
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

    def step_s(self, sequences: float, kv_tokens: float) -> float:
        many = max(1.0, sequences)
        line_s = self._read_s(self.tangent) + self._slope_s(self.tangent) * (many - self.tangent)
        return Profile.step_s(self, many, kv_tokens) - (line_s - self._read_s(many))  # no step is of less than one

    def sequences_within(self, step_s: float, kv_per_sequence: float) -> float:
        """Less than 1 where even one takes longer."""
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

    @property
    def full_tokens(self) -> float:
        return (self.weights_s + self.routed_s) / self.matrix_s_per_token

    def fit_error(self, sequences: float, kv_per_sequence: float) -> float:
        """How much longer than the curve the coefficients say that such a step takes, as a share of
        it.
        """
        kv_tokens = sequences * kv_per_sequence
        return Profile.step_s(self, sequences, kv_tokens) / self.step_s(sequences, kv_tokens) - 1
