"""PURE: The profile of a deployment: the speed of one worker of each pool.

Prefill of a batch of prompts with n uncached tokens each takes `a + b*sum(n) + c*sum(n^2)` seconds.
A decode step over B sequences that hold K tokens of KV takes `d + e*B + f*K + h*B^2`, where h is
the additional cost of large batches that are bound by arithmetic. The published profiles are fits
of the measurements of Splitwise (github.com/Mutinifni/splitwise-sim, data/perf_model.csv, MIT) and,
for the 8B model, of the parameters in the autoscaler guide of llm-d.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

_LEAST_S_PER_SEQUENCE = 1e-9
MEASURED = "measured"
"""The key of a profile file that says where the profile comes from (performance.origin)."""


class ProfileError(ValueError):
    """Raised when a profile can't be used; the message names the file and the field."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The speed of a prefill worker and of a decode worker, and their limits."""

    gpus: int
    """The number of GPUs of a worker."""
    a_s: float
    """The seconds of a prefill batch of any size."""
    b_s_per_token: float
    """The seconds of a prefill batch per uncached token."""
    c_s_per_token2: float
    """The seconds of a prefill batch per squared number of uncached tokens of a prompt."""
    d_s: float
    """The seconds of a decode step of any size."""
    e_s_per_sequence: float
    """The seconds of a decode step per sequence."""
    f_s_per_token: float
    """The seconds of a decode step per token of KV that its sequences hold."""
    kv_tokens: int
    """The number of tokens that the KV cache of a decode worker holds."""
    transfer_s_per_token: float = 0.0
    """The seconds per prompt token to move KV from prefill to decode."""
    batch_tokens: int = 4096
    """The maximum number of tokens of a prefill batch."""
    max_running: int = 256
    """The maximum number of sequences of a decode step."""
    overhead_s: float = 0.0
    """The seconds that router and network add before the first token."""
    handover_s: float = 0.0
    """The seconds from the first token until decode begins."""
    batch_wait_s: float = 0.0
    """The seconds after which an idle prefill worker starts a batch that is not full."""
    batch_full_tokens: int = 0
    """The number of waiting tokens from which an idle prefill worker starts a batch at once."""
    take_in_s: float = 0.0
    """The seconds that a joining sequence delays the others of its decode worker.

    They are spent on its request, on its KV, and on everything else that the same processor does.
    """
    h_s_per_sequence2: float = 0.0
    """The seconds of a decode step per squared number of sequences."""
    front_s: float = 0.0
    """The seconds of a router for one request; it handles one after another."""

    def prefill_s(self, tokens: float, tokens_squared: float) -> float:
        """Return the time in seconds of a prefill batch.

        `tokens` is the sum of the uncached tokens of its prompts, `tokens_squared` that of their
        squares.
        """
        return self.a_s + self.b_s_per_token * tokens + self.c_s_per_token2 * tokens_squared

    def isolated_s(self, tokens: float) -> float:
        """Return the prefill time in seconds of a prompt alone."""
        return self.prefill_s(tokens, tokens * tokens)

    def step_s(self, sequences: float, kv_tokens: float) -> float:
        """Return the time in seconds of a decode step."""
        per_sequence_s = self.e_s_per_sequence + self.h_s_per_sequence2 * sequences
        return self.d_s + per_sequence_s * sequences + self.f_s_per_token * kv_tokens

    def sequences_within(self, step_s: float, kv_per_sequence: float) -> float:
        """Return the number of sequences whose decode step takes `step_s`.

        It is negative if even a step without sequences takes longer.
        """
        left_s = step_s - self.d_s
        linear, square = self.e_s_per_sequence + self.f_s_per_token * kv_per_sequence, self.h_s_per_sequence2
        if square <= 0 or left_s <= 0:
            return left_s / linear
        return (math.sqrt(linear * linear + 4 * square * left_s) - linear) / (2 * square)

    def around(self, sequences: float) -> Self:
        """Return the same profile with coefficients that are exact at this number of sequences.

        In this class they are exact everywhere.
        """
        return self

    def linear_at(self, sequences: float) -> Self:
        """Return the profile without a square of the sequences, exact at this number of them.

        With fewer sequences it is too slow, never too fast.
        """
        square = self.h_s_per_sequence2
        if square <= 0:
            return self.around(sequences)
        return replace(self, e_s_per_sequence=self.e_s_per_sequence + square * sequences, h_s_per_sequence2=0.0)

    @property
    def first_guess(self) -> float:
        """The number of sequences at which a search for a steady number of them begins.

        The search only moves one way: here up, because a step takes ever longer per sequence.
        """
        return 0.0

    def unread_s(self, sequences: float) -> float:
        """Return the time in seconds that a decode step saves by not reading unused weights."""
        return 0.0

    def reading_s(self, sequences: float) -> float:
        """Return the time in seconds of a decode step to read its weights, and its fixed time."""
        return self.d_s

    def chunk_s(self, tokens: float, sequences: float, prompt_tokens: float) -> float:
        """Return the additional time in seconds of a decode step that also computes a chunk.

        The chunk has `tokens` of prompts of `prompt_tokens`; their attention is not included. An
        engine reads the weights once for both, and computes the chunk while it reads. The tokens of
        the sequences are multiplied together with the chunk, and then take as long as its tokens.
        GPUs that compute their own sequences wait for the one that has the longest share of the
        chunk.
        """
        computing_s = self.a_s + self.b_s_per_token * tokens + self.beside_chunk_s(sequences) * sequences
        ranks, own_s = self.of_one_rank(prompt_tokens)
        waiting_s = own_s * max(0.0, ranks * min(tokens, prompt_tokens) - tokens)
        return max(self.unread_s(sequences), computing_s - self.reading_s(sequences)) + waiting_s

    def beside_chunk_s(self, sequences: float) -> float:
        """Return by how many seconds more a sequence takes if its step also computes a chunk.

        Without a chunk its multiplications may be hidden behind reading the weights.
        """
        return max(0.0, self.b_s_per_token - self.e_s_per_sequence - self.h_s_per_sequence2 * sequences)

    def of_one_rank(self, prompt_tokens: float) -> tuple[int, float]:
        """Return the number of GPUs that compute their own prompts, and the time of a token there.

        It is the time in seconds, on all GPUs, of what only one of them computes for a prompt.
        """
        return 1, 0.0

    def lone_s(self, tokens: float, tokens_squared: float) -> float:
        """Return the additional time in seconds of a prompt that alone can't occupy all GPUs."""
        return 0.0

    @property
    def request_tokens(self) -> float:
        """The maximum number of tokens of KV that one request can hold."""
        return self.kv_tokens

    @property
    def full_tokens(self) -> float:
        """The number of batch tokens from which multiplying by the weights hides reading them.

        It is 0 if the coefficients include the reading.
        """
        return 0.0

    def serving(self, output_tokens: float) -> Self:
        """Return the profile while sequences of `output_tokens` join and leave.

        The time to take a sequence in is spread over its steps.
        """
        return replace(
            self, e_s_per_sequence=self.e_s_per_sequence + self.take_in_s / max(1.0, output_tokens), take_in_s=0.0
        )

    def prefill_work_s(self, requests: float, tokens: float, tokens_squared: float) -> float:
        """Return the time in seconds of one worker for these prompts under load.

        Batches are then full, except for prompts that fill a batch alone.
        """
        batches = min(requests, 1.15 * tokens / self.batch_tokens)
        return self.a_s * batches + self.b_s_per_token * tokens + self.c_s_per_token2 * tokens_squared

    def best_batch(self, tpot_s: float, kv_per_sequence: float) -> float:
        """Return the maximum number of sequences whose step takes no longer than `tpot_s`.

        It is at least 1, and at most what the cache and `max_running` allow.
        """
        by_time = self.sequences_within(tpot_s, kv_per_sequence)
        return max(1.0, min(by_time, self.kv_tokens / max(kv_per_sequence, 1.0), float(self.max_running)))

    def decode_tokens_per_s(self, tpot_s: float, kv_per_sequence: float) -> float:
        """Return the maximum number of tokens per second of a decode worker within `tpot_s`."""
        batch = self.best_batch(tpot_s, kv_per_sequence)
        return batch / self.step_s(batch, batch * kv_per_sequence)

    def __post_init__(self) -> None:
        """Ensure that a sequence costs some time.

        A measurement of few sequences may suggest that a step takes the same time for any number.
        """
        if self.e_s_per_sequence + self.f_s_per_token <= 0:
            object.__setattr__(self, "e_s_per_sequence", _LEAST_S_PER_SEQUENCE)


PROFILES = {
    "70b-h100-tp4": Profile(4, 35.7e-3, 60.4e-6, 7.3e-9, 28.85e-3, 0.27e-3, 35e-9, 450_000),
    "70b-a100-tp4": Profile(4, 41.5e-3, 156.7e-6, 14.6e-9, 43.1e-3, 0.19e-3, 57e-9, 450_000),
    "8b-h100": Profile(1, 10e-3, 32e-6, 0.33e-9, 6.97e-3, 0.027e-3, 56e-9, 420_000),
}
# An H200 computes like an H100, but reads 4.8 instead of 3.35 TB/s and has 2.1 times the free
# memory.
_H100 = PROFILES["70b-h100-tp4"]
PROFILES["70b-h200-tp4"] = replace(
    _H100, d_s=0.7 * _H100.d_s, f_s_per_token=0.7 * _H100.f_s_per_token, kv_tokens=945_000
)

_POSITIVE = ("gpus", "d_s", "kv_tokens", "batch_tokens", "max_running")
_WHOLE = ("gpus", "kv_tokens", "batch_tokens", "max_running", "batch_full_tokens")


def parse(name: str, text: str) -> Profile:
    """Parse a profile from the JSON that `to_text` returns.

    Raises ProfileError, which names the file by `name`.
    """
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ProfileError(f"{name}: must hold one JSON object")
        known = {f.name for f in fields(Profile)}
        raw.pop(MEASURED, None)
        if unknown := sorted(set(raw) - known):
            raise ProfileError(f"{name}: {unknown[0]}: unknown field")
        found = Profile(**raw)
    except ProfileError:
        raise
    except (ValueError, TypeError) as error:
        raise ProfileError(f"{name}: {error}") from None
    for field, value in asdict(found).items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and field in _POSITIVE):
            raise ProfileError(f"{name}: {field}: {value!r} is not a positive number")
        if field in _WHOLE and value != int(value):
            raise ProfileError(f"{name}: {field}: {value!r} is not a whole number")
    if found.isolated_s(1) <= 0:
        raise ProfileError(f"{name}: a_s, b_s_per_token, c_s_per_token2: all are 0, and no prompt is free")
    return found


def to_text(profile: Profile, measured: Mapping[str, Any] | None = None) -> str:
    """Return a profile, and where it comes from if that is known, as JSON."""
    return json.dumps(({MEASURED: dict(measured)} if measured else {}) | asdict(profile), indent=1) + "\n"
