"""The values that a scrape of the simulated pools reads, and the table of a run's ticks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Pods, PrefillSignals
from disagg_operator.simulation.columns import DRAINING, READY, Columns, Counters

_NO_PODS = Pods(0, 0)


class TickRow(NamedTuple):
    """The fleet and the load at the end of one tick; counts are those of the tick."""

    t_s: float
    prefill_desired: int
    prefill_ready: int
    prefill_paid: int  # workers, those that start or drain included
    decode_desired: int
    decode_ready: int
    decode_paid: int
    waiting_requests: float  # for prefill
    waiting_tokens: float
    decode_waiting: float  # requests that no decode worker had room for
    running: float  # sequences that decode
    arrivals: float
    prompt_tokens: float  # of the arrivals, without cached ones
    generated_tokens: float
    ttft_total: float  # requests judged by their TTFT
    ttft_ok: float
    tpot_total: float  # requests judged by their TPOT
    tpot_ok: float


@dataclass(frozen=True)
class TickTable:
    """The ticks of a run, as columns by the names of `TickRow`."""

    rows: Any

    def __getitem__(self, name: str) -> Any:
        return self.rows[:, TickRow._fields.index(name)]

    def columns_as_lists(self) -> dict[str, list[float]]:
        """Return every column by its name."""
        return {name: self.rows[:, i].tolist() for i, name in enumerate(TickRow._fields)}


def prefill_signals(s: Columns, count: Counters, grown: Counters) -> PrefillSignals:
    """Return the signals of the prefill pool, without its pods.

    `count` is what is counted now, `grown` how much that is more than at the last scrape.
    """
    waiting = count.waiting_tail - count.waiting_head + count.retries_tail - count.retries_head
    return PrefillSignals(
        _NO_PODS,
        arrivals=float(grown.arrivals),
        prompt_tokens=grown.arrived_tokens,
        prompt_tokens_squared=grown.arrived_tokens_squared,
        waiting_requests=float(waiting),
        waiting_tokens=count.queued_tokens,
        running_requests=float((s.prefill.batch_end - s.prefill.batch_begin).sum()),
        busy_s=grown.prefill_busy_s,
        ttft_total=float(grown.ttft_total + grown.dropped),
        ttft_ok=float(grown.ttft_ok),
        batches=float(grown.batches),
        batch_tokens=grown.batch_tokens,
        batch_tokens_squared=grown.batch_tokens_squared,
        batch_s=grown.prefill_busy_s,
    )


def decode_signals(s: Columns, count: Counters, grown: Counters) -> DecodeSignals:
    """Return the signals of the decode pool, without its pods; the counters as for prefill."""
    serving = (s.decode.state == READY) | (s.decode.state == DRAINING)
    return DecodeSignals(
        _NO_PODS,
        waiting_requests=float(count.decode_tail - count.decode_head),
        running_requests=float(s.decode.sequences[serving].sum()),
        kv_tokens=float(s.decode.kv_tokens[serving].sum()),
        kv_capacity_tokens=float(s.profile.kv_tokens),
        generated_tokens=grown.generated_tokens,
        completions=float(grown.ended),
        completed_output_tokens=grown.ended_tokens,
        completed_context_tokens=grown.ended_kv_tokens,
        tpot_total=float(grown.tpot_total + grown.killed),
        tpot_ok=float(grown.tpot_ok),
        steps=grown.steps,
        step_sequences=grown.step_sequences,
        step_kv_tokens=grown.step_kv_tokens,
        step_s=grown.step_s,
    )
