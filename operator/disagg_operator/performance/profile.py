"""PURE: how fast one worker of each pool is.

Prefill of a batch with n uncached tokens each takes `a + b*sum(n) + c*sum(n^2)` seconds; one decode
step over B sequences that hold K tokens of KV takes `d + e*B + f*K + h*B^2`, where h is what large
batches cost more once they are bound by arithmetic. The published profiles are fits of Splitwise's
measurements (github.com/Mutinifni/splitwise-sim, data/perf_model.csv, MIT) and, for the 8B model,
of the parameters in llm-d's autoscaler guide.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Self

_LEAST_S_PER_SEQUENCE = 1e-9


class ProfileError(ValueError):
    """A profile that can't be used; the message names field and file."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds, seconds per token, and so on; `kv_tokens`: what one decode worker's cache holds.

    What a request meets beside computation: `overhead_s` until its first token (router, network),
    `handover_s` from there until it decodes. An idle worker starts a prefill batch once
    `batch_full_tokens` wait, or the oldest prompt has waited `batch_wait_s`. The sequences that a
    decode worker runs are held up by `take_in_s` for each one that joins them (its request, its KV,
    and whatever else is done for it on the same processor). `front_s`: what a router takes for one
    request, one after another.
    """

    gpus: int
    a_s: float
    b_s_per_token: float
    c_s_per_token2: float
    d_s: float
    e_s_per_sequence: float
    f_s_per_token: float
    kv_tokens: int
    transfer_s_per_token: float = 0.0
    batch_tokens: int = 4096
    max_running: int = 256
    overhead_s: float = 0.0
    handover_s: float = 0.0
    batch_wait_s: float = 0.0
    batch_full_tokens: int = 0
    take_in_s: float = 0.0
    h_s_per_sequence2: float = 0.0
    front_s: float = 0.0

    def prefill_s(self, tokens: float, tokens_squared: float) -> float:
        """One batch whose prompts' uncached tokens, and their squares, sum up to this."""
        return self.a_s + self.b_s_per_token * tokens + self.c_s_per_token2 * tokens_squared

    def isolated_s(self, tokens: float) -> float:
        """One prompt alone."""
        return self.prefill_s(tokens, tokens * tokens)

    def step_s(self, sequences: float, kv_tokens: float) -> float:
        """One decode step."""
        per_sequence_s = self.e_s_per_sequence + self.h_s_per_sequence2 * sequences
        return self.d_s + per_sequence_s * sequences + self.f_s_per_token * kv_tokens

    def sequences_within(self, step_s: float, kv_per_sequence: float) -> float:
        """How many sequences' step takes so long; negative where even none's takes longer."""
        left_s = step_s - self.d_s
        linear, square = self.e_s_per_sequence + self.f_s_per_token * kv_per_sequence, self.h_s_per_sequence2
        if square <= 0 or left_s <= 0:
            return left_s / linear
        return (math.sqrt(linear * linear + 4 * square * left_s) - linear) / (2 * square)

    def around(self, sequences: float) -> Self:
        """The same, whose coefficients hold at so many sequences a step.

        Here they hold everywhere.
        """
        return self

    def unread_s(self, sequences: float) -> float:
        """What a step over so many takes less than one that reads all weights, for want of
        sequences that need them.
        """
        return 0.0

    def lone_s(self, tokens: float, tokens_squared: float) -> float:
        """How much longer a prompt's tokens take without others, for want of work for all GPUs."""
        return 0.0

    @property
    def request_tokens(self) -> float:
        """What one request may hold."""
        return self.kv_tokens

    @property
    def full_tokens(self) -> float:
        """Prompt tokens of a batch from which on reading the weights takes no longer than
        multiplying by them. 0: coefficients have it.
        """
        return 0.0

    def serving(self, output_tokens: float) -> Self:
        """What a step costs while sequences of so many tokens come and go: the time to take them in
        is spread over their steps.
        """
        return replace(
            self, e_s_per_sequence=self.e_s_per_sequence + self.take_in_s / max(1.0, output_tokens), take_in_s=0.0
        )

    def prefill_work_s(self, requests: float, tokens: float, tokens_squared: float) -> float:
        """Seconds of one worker for these prompts under load, when batches are full but for prompts
        that fill one alone.
        """
        batches = min(requests, 1.15 * tokens / self.batch_tokens)
        return self.a_s * batches + self.b_s_per_token * tokens + self.c_s_per_token2 * tokens_squared

    def best_batch(self, tpot_s: float, kv_per_sequence: float) -> float:
        """Most sequences whose step stays within `tpot_s`; at least 1, at most what the cache and
        `max_running` allow.
        """
        by_time = self.sequences_within(tpot_s, kv_per_sequence)
        return max(1.0, min(by_time, self.kv_tokens / max(kv_per_sequence, 1.0), float(self.max_running)))

    def decode_tokens_per_s(self, tpot_s: float, kv_per_sequence: float) -> float:
        """Most tokens a second of one worker within `tpot_s`."""
        batch = self.best_batch(tpot_s, kv_per_sequence)
        return batch / self.step_s(batch, batch * kv_per_sequence)

    def __post_init__(self) -> None:
        """Steps that take the same at any batch are what a measurement of few sequences shows; no
        sequence is quite free.
        """
        if self.e_s_per_sequence + self.f_s_per_token <= 0:
            object.__setattr__(self, "e_s_per_sequence", _LEAST_S_PER_SEQUENCE)


PROFILES = {
    "70b-h100-tp4": Profile(4, 35.7e-3, 60.4e-6, 7.3e-9, 28.85e-3, 0.27e-3, 35e-9, 450_000),
    "70b-a100-tp4": Profile(4, 41.5e-3, 156.7e-6, 14.6e-9, 43.1e-3, 0.19e-3, 57e-9, 450_000),
    "8b-h100": Profile(1, 10e-3, 32e-6, 0.33e-9, 6.97e-3, 0.027e-3, 56e-9, 420_000),
}
# An H200 computes as an H100 does and reads 4.8 instead of 3.35 TB/s from 2.1 times the free
# memory.
_H100 = PROFILES["70b-h100-tp4"]
PROFILES["70b-h200-tp4"] = replace(
    _H100, d_s=0.7 * _H100.d_s, f_s_per_token=0.7 * _H100.f_s_per_token, kv_tokens=945_000
)

_POSITIVE = ("gpus", "d_s", "kv_tokens", "batch_tokens", "max_running")
_WHOLE = ("gpus", "kv_tokens", "batch_tokens", "max_running", "batch_full_tokens")


def parse(name: str, text: str) -> Profile:
    """Parse a profile of the JSON that `to_text` writes; `name` is that of the file, for messages.

    Raises ProfileError.
    """
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ProfileError(f"{name}: must hold one JSON object")
        known = {f.name for f in fields(Profile)}
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


def to_text(profile: Profile) -> str:
    """Return the profile as JSON, one field a line."""
    return json.dumps(asdict(profile), indent=1) + "\n"
