"""PURE: Folds what engines of other projects tell into an `Observation`, where no router tells it.

Engines count requests when they end. What has arrived is what has ended and what is in the engine
now; a request that was cancelled counts as if it had never come. The lengths of the prompts that
arrive are those of the prompts that ended lately. Everything else is as in `fold`: unknown is never
zero, and a pool of which a pod did not answer is `partial`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Folded, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.signals.fold import MAX_GAP_S, Memory
from disagg_operator.autoscaling.signals.policy_inputs import Seen, advanced
from disagg_operator.autoscaling.signals.pool_sums import Answers, PoolSums
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_wire.engine_metrics.readings import PoolReadings
from disagg_wire.roles import DECODE, PREFILL

_LENGTH_MEMORY_S = 120.0
# What the whole life of the engines says about lengths at the first look is worth so many requests.
_SEED_REQUESTS = 20.0
# Without a histogram, the squares of prompt lengths are those of an exponential distribution.
_SQUARES_OF_UNKNOWN = 2.0
# The seconds of prefill of each request are only told added up. In workers that prefill for less
# than half of the time, two prompts are seldom computed at once, so that the sum is about the time.
_SELDOM_TWO = 0.5

_ARRIVED, _FINISHED, _PROMPT, _COMPUTED, _OUTPUT = "arrived", "finished", "prompt", "computed", "output"
_WAITING, _RUNNING, _KV, _CAPACITY, _GENERATED = "waiting", "running", "kv", "capacity", "generated"
_FIRST, _SECOND = "first moment", "second moment"
_TTFT, _TTFT_OK, _TPOT, _TPOT_OK = "ttft", "ttft ok", "tpot", "tpot ok"
_STEPS, _GAP_S, _GAPS, _PREFILL_S = "steps", "gap seconds", "gaps", "prefill seconds"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The report of one pod at one time."""

    at_s: float
    readings: PoolReadings


Reports = Mapping[str, EngineReport | None]  # by pod that should answer


@dataclass(frozen=True, slots=True)
class EngineLook:
    """One look at two pools of engines."""

    now_s: float
    prefill: Reports
    decode: Reports
    prefill_pods: Pods
    decode_pods: Pods
    ttft_s: float
    """The objective of the first token."""
    tpot_s: float
    """The objective of each further token."""


@dataclass(frozen=True, slots=True)
class _Arrived:
    """The requests that have come to one pod since its engine's start."""

    started: str
    finished: float
    most: float


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """Faded sums over the requests that ended lately."""

    requests: float = 0.0
    prompt: float = 0.0
    """Their prompt tokens."""
    computed: float = 0.0
    """Those of the tokens that were computed, because they were not cached."""
    first: float = 0.0
    """Their prompt tokens, as the buckets of the histogram tell them."""
    second: float = 0.0
    """The squares of these."""

    def mean(self) -> float:
        """Return the mean of the tokens that a request has computed, NaN if none has ended."""
        return self.computed / self.requests if self.requests > 0 else math.nan

    def mean_square(self) -> float:
        """Return the mean of the squares of these tokens."""
        if not (self.first > 0 and self.prompt > 0):
            return _SQUARES_OF_UNKNOWN * self.mean() ** 2
        # The buckets tell the shape, and the sums, which are exact, the size.
        return self.second / self.requests * (self.computed / self.first) ** 2


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """The previous look, with which the next one is compared."""

    counters: Memory = field(default_factory=Memory)
    arrived: Mapping[str, _Arrived] = field(default_factory=dict)
    """The arrivals of each pod."""
    lengths: PromptLengths = PromptLengths()


def observe_engines(look: EngineLook, memory: EngineMemory, *, polled: bool) -> tuple[Seen, EngineMemory]:
    """Return the input of the policy from one look, and the memory for the next.

    `polled` means that it was read from a Prometheus, which scrapes at its own times.
    """
    arrived = _arrivals(look, memory.arrived)
    prefill, decode = (
        {pod: None if report is None else _sample(look, report, arrived.get(pod)) for pod, report in reports.items()}
        for reports in (look.prefill, look.decode)
    )
    everybody: Answers = {**prefill, **decode}
    counters = memory.counters
    first = math.isnan(counters.at_s) and any(sample is not None for sample in everybody.values())
    fresh = not polled or advanced(everybody, counters, look.now_s)
    interval_s = look.now_s - counters.at_s
    if not fresh or not 0 < interval_s <= MAX_GAP_S:
        interval_s = math.nan
    before = replace(counters, samples={}) if math.isnan(interval_s) else counters
    sums = [PoolSums(answers, before, interval_s, look.now_s) for answers in (prefill, decode)]
    lengths = _lengths(memory.lengths, sums[0], interval_s)
    observation = Observation(
        look.now_s, 0.0 if math.isnan(interval_s) else interval_s,
        _prefill(look, sums[0], lengths, interval_s), _decode(look, sums[1]),
    )  # fmt: skip
    partial = frozenset(name for name, pool in zip((PREFILL, DECODE), sums, strict=True) if pool.silent)
    after = _remember(everybody, counters, look.now_s) if fresh else counters
    seen = Seen(Folded(observation, partial), {}, after, fresh, first)
    return seen, EngineMemory(after, arrived, lengths)


def _arrivals(look: EngineLook, before: Mapping[str, _Arrived]) -> dict[str, _Arrived]:
    """Return the arrivals of each pod; a pod that did not answer keeps its own."""
    out = {}
    for pod, report in {**look.prefill, **look.decode}.items():
        known = before.get(pod)
        now = None if report is None else _arrived(report.readings, known)
        if (kept := now or known) is not None:
            out[pod] = kept
    return out


def _arrived(readings: PoolReadings, known: _Arrived | None) -> _Arrived | None:
    inside = readings.engine.waiting + readings.engine.running
    if math.isnan(inside):
        return None
    # Some counters of an engine exist only from the first event on.
    finished = 0.0 if math.isnan(readings.finished_total) else readings.finished_total
    now = _Arrived(readings.engine.started, finished, finished + inside)
    if known is None or readings.engine.started != known.started or finished < known.finished:
        return now  # the engine has begun anew
    # A request that is cancelled leaves no trace: what has arrived must not shrink for it.
    return replace(now, most=max(now.most, known.most))


def _sample(look: EngineLook, report: EngineReport, arrived: _Arrived | None) -> Sample:
    """Return what a pod told under the names of this module; what it did not tell is absent."""
    r, engine = report.readings, report.readings.engine
    first, second = r.prompt_lengths.estimated_sums()
    computed = engine.prompt_tokens_total
    if math.isnan(computed):
        computed = r.finished_prompt_tokens_total
    values = {
        _ARRIVED: math.nan if arrived is None else arrived.most,
        _FINISHED: r.finished_total,
        _PROMPT: r.finished_prompt_tokens_total,
        _COMPUTED: computed,
        _OUTPUT: r.finished_output_tokens_total,
        _WAITING: engine.waiting,
        _RUNNING: engine.running,
        _KV: engine.kv_usage * r.kv_capacity_tokens,
        _CAPACITY: r.kv_capacity_tokens,
        _GENERATED: engine.generated_tokens_total,
        _FIRST: first,
        _SECOND: second,
        _TTFT: r.ttft.number,
        _TTFT_OK: r.ttft.within(look.ttft_s),
        _TPOT: r.tpot.number,
        _TPOT_OK: r.tpot.within(look.tpot_s),
        _STEPS: engine.steps_total,
        _GAP_S: engine.itl_s_sum,
        _GAPS: engine.itl_count,
        _PREFILL_S: r.prefill_s_total,
    }
    return Sample(report.at_s, {name: value for name, value in values.items() if math.isfinite(value) and value >= 0})


def _lengths(lengths: PromptLengths, prefill: PoolSums, interval_s: float) -> PromptLengths:
    names = (_FINISHED, _PROMPT, _COMPUTED, _FIRST, _SECOND)
    if not lengths.requests > 0:
        whole = [prefill.gauge(name) for name in names]
        if not whole[0] > 0 or math.isnan(whole[2]):
            return lengths
        share = min(1.0, _SEED_REQUESTS / whole[0])
        return PromptLengths(*(0.0 if math.isnan(value) else share * value for value in whole))
    grown = [prefill.increase(name) for name in names]
    if math.isnan(grown[0]) or math.isnan(grown[2]) or not grown[0] > 0:
        return lengths
    keep = math.exp(-interval_s / _LENGTH_MEMORY_S)
    old = (lengths.requests, lengths.prompt, lengths.computed, lengths.first, lengths.second)
    return PromptLengths(*(keep * a + (0.0 if math.isnan(b) else b) for a, b in zip(old, grown, strict=True)))


def _prefill(look: EngineLook, pods: PoolSums, lengths: PromptLengths, interval_s: float) -> PrefillSignals:
    # Without a pod that could be asked, nobody knows what arrives.
    arrivals = pods.increase(_ARRIVED) if look.prefill else math.nan
    mean = lengths.mean()
    waiting = pods.gauge(_WAITING)
    finished, computed, seconds = pods.increase_of_old(_FINISHED, _COMPUTED, _PREFILL_S)
    alone = seconds <= _SELDOM_TWO * interval_s * len(look.prefill)
    return PrefillSignals(
        pods=look.prefill_pods,
        arrivals=arrivals,
        prompt_tokens=arrivals * mean if arrivals > 0 else arrivals,
        prompt_tokens_squared=arrivals * lengths.mean_square() if arrivals > 0 else arrivals,
        waiting_requests=waiting,
        waiting_tokens=waiting * mean,
        running_requests=pods.gauge(_RUNNING),
        ttft_total=pods.increase(_TTFT),
        ttft_ok=pods.increase(_TTFT_OK),
        batches=finished if alone else math.nan,
        batch_tokens=computed if alone else math.nan,
        batch_tokens_squared=finished * lengths.mean_square() if alone else math.nan,
        batch_s=seconds if alone else math.nan,
    )


def _decode(look: EngineLook, pods: PoolSums) -> DecodeSignals:
    completions, outputs = pods.increase(_FINISHED), pods.increase(_OUTPUT)
    running, kv = pods.gauge(_RUNNING), pods.gauge(_KV)
    kept = pods.increase(_TPOT_OK) / total if (total := pods.increase(_TPOT)) > 0 else math.nan
    generated, gap_s, gaps = pods.increase_of_old(_GENERATED, _GAP_S, _GAPS)
    (steps,) = pods.increase_of_old(_STEPS)
    per_pod = running / len(look.decode) if look.decode else math.nan
    if math.isnan(steps) and per_pod > 0:
        steps = generated / per_pod  # each step gives one token to each running request
    # The time between two tokens of a request is that of a step.
    step_s = steps * gap_s / gaps if gaps > 0 else math.nan
    return DecodeSignals(
        pods=look.decode_pods,
        waiting_requests=pods.gauge(_WAITING),
        running_requests=running,
        kv_tokens=kv,
        kv_capacity_tokens=pods.mean(_CAPACITY),
        generated_tokens=pods.increase(_GENERATED) if look.decode else math.nan,
        completions=completions,
        completed_output_tokens=outputs,
        completed_context_tokens=outputs + pods.increase(_PROMPT),
        # The objective is one of requests, also where the engine tells the times of tokens.
        tpot_total=completions if kept == kept else math.nan,
        tpot_ok=completions * kept,
        steps=steps,
        step_sequences=generated,
        step_kv_tokens=generated * kv / running if running > 0 else math.nan,
        step_s=step_s,
    )


def _remember(answers: Answers, memory: Memory, now_s: float) -> Memory:
    samples, seen_s = {}, {}
    for pod, sample in answers.items():
        # A pod that did not answer keeps its last sample, with which its next one is compared.
        if (kept := sample or memory.samples.get(pod)) is not None:
            samples[pod] = kept
            seen_s[pod] = memory.seen_s.get(pod, now_s)
    return Memory(now_s, samples, seen_s)
