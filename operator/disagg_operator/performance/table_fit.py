"""PURE: The fit of a Profile to tables that say how long any prompt and any decode step take.

Tables know only what a worker computes. The memory and the limits of the profile are those of an
estimate for the same worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from disagg_operator.performance.expert_profile import ALL_EXPERTS, ExpertProfile
from disagg_operator.performance.fit import Residual, non_negative
from disagg_operator.performance.profile import Profile

PROMPTS_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SEQUENCES = (1, 4, 16, 32, 64, 128, 192, 256, 384, 512)
HELD_TOKENS = (256, 1024, 4096, 16384)
Step = tuple[int, int]
"""The sequences of a step, and the tokens that each holds."""
_LEAST_STEP_S = 1e-6


@dataclass(frozen=True, slots=True)
class Tables:
    """The time that a worker computes, in seconds."""

    prompt_s: Callable[[int], float]
    """The time of a prompt of a number of tokens alone."""
    step_s: Callable[[int, int], float]
    """The time of a decode step of a number of sequences that hold a number of tokens each."""


@dataclass(frozen=True, slots=True)
class FromTables:
    """A profile that was fitted to tables."""

    profile: Profile
    residuals: tuple[Residual, ...]

    @property
    def worst_error(self) -> float:
        """The largest relative error of a fitted time, without its sign."""
        return max(abs(r.error) for r in self.residuals)


def from_tables(tables: Tables, like: Profile, context_tokens: int | None = None) -> FromTables:
    """Fit the times of a profile to tables; everything else is that of another one.

    Only prompts of at most `context_tokens` and steps that the cache has room for are looked up.
    """
    longest = min(context_tokens or like.kv_tokens, like.kv_tokens)
    prompts = [n for n in PROMPTS_TOKENS if n <= longest]
    steps = [
        (n, held)
        for n in SEQUENCES
        for held in HELD_TOKENS
        if n <= like.max_running and held < longest and n * held <= like.kv_tokens
    ]
    prompt_s = [tables.prompt_s(n) for n in prompts]
    step_s = [tables.step_s(n, held) for n, held in steps]
    a, b, c = non_negative([(1.0, n, n * n) for n in prompts], prompt_s)
    timed = _with_experts(like, steps, step_s) if isinstance(like, ExpertProfile) else _dense(like, steps, step_s)
    profile = replace(timed, a_s=a, b_s_per_token=b, c_s_per_token2=c)
    residuals = [
        Residual(f"{n} tokens alone", s, profile.isolated_s(n)) for n, s in zip(prompts, prompt_s, strict=True)
    ]
    residuals += [
        Residual(f"{n} x {held} tokens", s, profile.step_s(n, n * held))
        for (n, held), s in zip(steps, step_s, strict=True)
    ]
    return FromTables(profile, tuple(residuals))


def _dense(like: Profile, steps: Sequence[Step], step_s: Sequence[float]) -> Profile:
    d, e, f, h = non_negative([(1.0, n, n * held, n * n) for n, held in steps], step_s)
    return replace(like, d_s=max(d, _LEAST_STEP_S), e_s_per_sequence=e, f_s_per_token=f, h_s_per_sequence2=h)


def _with_experts(like: ExpertProfile, steps: Sequence[Step], step_s: Sequence[float]) -> Profile:
    """Return a profile whose steps read the experts that their sequences use.

    The times of prompts contain the reading, so no batch is too small to hide it.
    """
    used = [1 - (1 - like.share) ** n for n, _ in steps]
    d, e, f, reading_s = non_negative(
        [(1.0, n, n * held, share) for (n, held), share in zip(steps, used, strict=True)], step_s
    )
    all_read = replace(
        like.around(ALL_EXPERTS), d_s=max(d + reading_s, _LEAST_STEP_S), e_s_per_sequence=e, f_s_per_token=f,
        routed_s=reading_s, weights_s=0.0, matrix_s_per_token=reading_s + _LEAST_STEP_S,
    )  # fmt: skip
    return all_read.around(like.tangent)
