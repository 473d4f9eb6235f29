"""PURE: What the engine has computed, as far as the adapter sees it pass.

Other engines do not tell how long a batch of prompts took. The adapter counts the time in which at
least one prompt was being computed, and every token with the length of its sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from disagg_wire.engine_metrics.readings import Readings

_NOTHING = Readings(steps_total=0.0, itl_s_sum=0.0, itl_count=0.0)


@dataclass(slots=True)
class WorkDone:
    """Sums since the adapter's start."""

    prompts: int = 0
    prompt_tokens: int = 0
    prompt_tokens_squared: int = 0
    prefill_busy_s: float = 0.0
    output_tokens: int = 0
    output_context_tokens: int = 0
    _running: dict[str, int] = field(default_factory=dict)
    _busy_since_s: float = 0.0
    _step_s: float = math.nan
    _counted: Readings = _NOTHING

    @property
    def queued_tokens(self) -> int:
        """The tokens of prompts that the engine has not finished."""
        return sum(self._running.values())

    @property
    def queued_prompts(self) -> int:
        return len(self._running)

    def prefill_began(self, name: str, tokens: int, now_s: float) -> None:
        if not self._running:
            self._busy_since_s = now_s
        self._running[name] = tokens

    def prefill_ended(self, name: str, now_s: float, *, done: bool) -> None:
        """Note that a prompt is computed, or was given up."""
        tokens = self._running.pop(name, None)
        if tokens is None:
            return
        if not self._running:
            self.prefill_busy_s += now_s - self._busy_since_s
        if done:
            self.prompts += 1
            self.prompt_tokens += tokens
            self.prompt_tokens_squared += tokens * tokens

    def generated(self, tokens: int, context_tokens: int) -> None:
        """Note generated tokens of a sequence that has `context_tokens` tokens with them."""
        self.output_tokens += tokens
        self.output_context_tokens += tokens * context_tokens

    def totals(self, readings: Readings, now_s: float, *, prefills: bool, decodes: bool) -> dict[str, float]:
        """Return the sums by the names of the worker's series, NaN for what is not known."""
        busy_s = self.prefill_busy_s + (now_s - self._busy_since_s if self._running else 0.0)
        step_s = self._step_seconds(readings)
        return {
            "prefill_batches": float(self.prompts) if prefills else math.nan,
            "prefill_batch_tokens": float(self.prompt_tokens) if prefills else math.nan,
            "prefill_batch_tokens_squared": float(self.prompt_tokens_squared) if prefills else math.nan,
            "prefill_batch_seconds": busy_s if prefills else math.nan,
            "decode_steps": readings.steps_total if decodes else math.nan,
            "decode_step_sequences": float(self.output_tokens) if decodes else math.nan,
            "decode_step_kv_tokens": float(self.output_context_tokens) if decodes else math.nan,
            "decode_step_seconds": step_s if decodes else math.nan,
        }

    def _step_seconds(self, readings: Readings) -> float:
        """Return the duration of all decode steps.

        It grows by the new steps times the mean of the new times between two tokens of a sequence.
        The mean since the engine's start would not do: the product falls when the mean does, and a
        sum that falls looks like a process that began anew.
        """
        told = (readings.steps_total, readings.itl_s_sum, readings.itl_count)
        if any(map(math.isnan, told)):
            return math.nan
        counted = (self._counted.steps_total, self._counted.itl_s_sum, self._counted.itl_count)
        grown = tuple(now - before for now, before in zip(told, counted, strict=True))
        if readings.started != self._counted.started or min(grown) < 0:
            grown = told  # the engine was restarted
        steps, itl_s, itls = grown
        if itls > 0:
            before_s = 0.0 if math.isnan(self._step_s) else self._step_s
            self._step_s, self._counted = before_s + steps * itl_s / itls, readings
        return self._step_s
