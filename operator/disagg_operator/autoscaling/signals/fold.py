"""PURE: Folds the present and the previous samples of the pods into an `Observation`.

Counters are differenced for each pod (a smaller value means a restart from zero) and then summed. A
pod that did not answer is unknown: the others stand for it, and the pool is marked `partial`, so
that it is not scaled down. If no pod answered, the signal is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Folded, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.signals.pool_sums import Answers, PoolSums
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_wire import series
from disagg_wire.roles import DECODE, PREFILL, ROLES

Routed = Callable[[str], float]
# An older look tells nothing about the present: after a gap the counters start afresh.
MAX_GAP_S = 120.0
_SHARE_MEMORY_S = 120.0
_PARTS = (series.PROMPT, series.UNCACHED)
# The counters from which a worker's speed is learned, by the field that holds their increase.
_LEARNED_OF_PREFILL = {
    "batches": series.WORKER_PREFILL_BATCHES,
    "batch_tokens": series.WORKER_PREFILL_BATCH_TOKENS,
    "batch_tokens_squared": series.WORKER_PREFILL_BATCH_TOKENS_SQUARED,
    "batch_s": series.WORKER_PREFILL_BATCH_SECONDS,
}
_LEARNED_OF_DECODE = {
    "steps": series.WORKER_DECODE_STEPS,
    "step_sequences": series.WORKER_DECODE_STEP_SEQUENCES,
    "step_kv_tokens": series.WORKER_DECODE_STEP_KV_TOKENS,
    "step_s": series.WORKER_DECODE_STEP_SECONDS,
}


@dataclass(frozen=True, slots=True)
class Share:
    """The share of the recent prompt tokens, and of their squares, that was not cached, and the
    share of the requests that was work for the prefill pool.

    The sums fade.
    """

    prompt: float = 0.0
    uncached: float = 0.0
    prompt2: float = 0.0
    uncached2: float = 0.0
    requests: float = 0.0
    prefilled: float = 0.0

    def tokens(self) -> float:
        """Return the uncached share of the tokens."""
        return self.uncached / self.prompt if self.prompt > 0 else 1.0

    def squares(self) -> float:
        """Return the uncached share of the squares of the tokens."""
        return self.uncached2 / self.prompt2 if self.prompt2 > 0 else 1.0

    def of_requests(self) -> float:
        """Return the share of the requests that is work for the prefill pool."""
        return self.prefilled / self.requests if self.requests > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Memory:
    """The previous look, with which the next one is compared."""

    at_s: float = math.nan
    """The time of the previous look; NaN before the first."""
    samples: Mapping[str, Sample] = field(default_factory=dict)
    """The last sample of each pod."""
    seen_s: Mapping[str, float] = field(default_factory=dict)
    """The time at which each pod first answered."""
    share: Share = Share()
    """The uncached share of the prompts."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a deployment: the pods that should have answered, and their samples.

    `prefill_pods` and `decode_pods` are the facts about pods from Kubernetes.
    """

    now_s: float
    routers: Answers
    prefill: Answers
    decode: Answers
    prefill_pods: Pods
    decode_pods: Pods


def fold(look: Look, memory: Memory) -> tuple[Folded, Memory]:
    """Return the observation of one look, and the memory for the next.

    Increases of counters are unknown at the first look and after a gap.
    """
    interval_s = look.now_s - memory.at_s
    if not 0 < interval_s <= MAX_GAP_S:
        interval_s = math.nan
        memory = replace(memory, samples={})
    routers = PoolSums(look.routers, memory, interval_s, look.now_s)
    prefill = PoolSums(look.prefill, memory, interval_s, look.now_s)
    decode = PoolSums(look.decode, memory, interval_s, look.now_s)
    known = len(look.routers) > 0 and not math.isnan(interval_s)

    def routed(metric: str) -> float:
        return routers.increase(metric) if known else math.nan

    share = _share(memory.share, routed, interval_s)
    observation = Observation(
        look.now_s, 0.0 if math.isnan(interval_s) else interval_s,
        _prefill(look, routed, share, routers, prefill), _decode(look, routed, routers, decode),
    )  # fmt: skip
    partial = {name for name, pool in ((PREFILL, prefill), (DECODE, decode)) if pool.silent}
    if routers.silent or not look.routers:
        partial |= set(ROLES)
    return Folded(observation, frozenset(partial)), _remember(look, memory, share)


def _remember(look: Look, memory: Memory, share: Share) -> Memory:
    samples, seen_s = {}, {}
    for answers in (look.routers, look.prefill, look.decode):
        for pod, sample in answers.items():
            # A pod that did not answer keeps its last sample, with which its next one is compared.
            if (kept := sample or memory.samples.get(pod)) is not None:
                samples[pod] = kept
                seen_s[pod] = memory.seen_s.get(pod, look.now_s)
    return Memory(look.now_s, samples, seen_s, share)


def _share(share: Share, routed: Routed, interval_s: float) -> Share:
    names = (series.ROUTER_PREFILLED_TOKENS, series.ROUTER_PREFILLED_TOKENS_SQUARED, series.ROUTER_PREFILLED_REQUESTS)
    tokens, squares, requests = (tuple(routed(f"{name}:{part}") for part in _PARTS) for name in names)
    if any(map(math.isnan, (*tokens, *squares))):
        return share
    if any(map(math.isnan, requests)):  # Routers of earlier releases do not count them.
        requests = (0.0, 0.0)
    keep = math.exp(-interval_s / _SHARE_MEMORY_S)
    old = (share.prompt, share.uncached, share.prompt2, share.uncached2, share.requests, share.prefilled)
    return Share(*(keep * a + b for a, b in zip(old, (*tokens, *squares, *requests), strict=True)))


def _kept_and_missed(routed: Routed, objective: str) -> tuple[float, float]:
    """Return how many requests met an objective, and how many missed it."""
    name = f"{series.ROUTER_OBJECTIVE_REQUESTS}:{objective}"
    return routed(f"{name}:{series.TRUE}"), routed(f"{name}:{series.FALSE}")


def _prefill(look: Look, routed: Routed, share: Share, routers: PoolSums, workers: PoolSums) -> PrefillSignals:
    arrivals = routed(series.ROUTER_ARRIVALS)
    tokens = routed(series.ROUTER_ARRIVED_PROMPT_TOKENS) * share.tokens()
    outside = routers.gauge(f"{series.ROUTER_WAITING_REQUESTS}:{PREFILL}") if look.routers else math.nan
    mean = tokens / arrivals if arrivals > 0 else 0.0
    ok, missed = _kept_and_missed(routed, series.TTFT)
    learned = workers.increase_of_old(*_LEARNED_OF_PREFILL.values())
    limit = workers.gauge(series.PREFILL_BATCH_LIMIT_TOKENS)
    most = workers.gauge(series.PREFILL_BATCH_MOST_TOKENS)
    waiting = workers.gauge(series.WORKER_WAITING_REQUESTS)
    waiting_tokens = workers.gauge(series.WORKER_WAITING_TOKENS)
    if math.isnan(waiting_tokens):
        waiting_tokens = waiting * mean  # an engine may know its requests and not their tokens
    return PrefillSignals(
        pods=look.prefill_pods,
        arrivals=arrivals,
        to_decode=arrivals * (1.0 - share.of_requests()),
        prompt_tokens=tokens,
        prompt_tokens_squared=routed(series.ROUTER_ARRIVED_PROMPT_TOKENS_SQUARED) * share.squares(),
        waiting_requests=waiting + outside,
        waiting_tokens=waiting_tokens + outside * mean,
        running_requests=workers.gauge(series.WORKER_RUNNING_REQUESTS),
        busy_s=workers.increase(series.WORKER_PREFILL_BATCH_SECONDS),
        ttft_total=ok + missed,
        ttft_ok=ok,
        batch_share=limit / most if most > 0 else math.nan,
        **dict(zip(_LEARNED_OF_PREFILL, learned, strict=True)),
    )


def _rest_s(workers: PoolSums) -> float:
    """Return the seconds in which decode workers computed the rest of prompts by choice.

    Workers do not time it apart from the prompts that they compute for want of a prefill worker, or
    again: those are no work that belongs to them.
    """
    named = (f"{series.WORKER_PROMPT_TOKENS_BY_SOURCE}:{s}" for s in (series.LOCAL_REST, series.LOCAL_COMPUTE))
    (rest, repeated), busy_s = map(workers.increase, named), workers.increase(series.WORKER_PREFILL_BATCH_SECONDS)
    return busy_s * rest / (rest + repeated) if rest > 0 and repeated >= 0 and busy_s > 0 else 0.0


def _decode(look: Look, routed: Routed, routers: PoolSums, workers: PoolSums) -> DecodeSignals:
    outside = routers.gauge(f"{series.ROUTER_WAITING_REQUESTS}:{DECODE}") if look.routers else math.nan
    ok, missed = _kept_and_missed(routed, series.TPOT)
    learned = workers.increase_of_old(*_LEARNED_OF_DECODE.values())
    return DecodeSignals(
        pods=look.decode_pods,
        waiting_requests=workers.gauge(series.WORKER_WAITING_REQUESTS) + outside,
        running_requests=workers.gauge(series.WORKER_RUNNING_REQUESTS),
        kv_tokens=workers.gauge(series.WORKER_KV_TOKENS),
        kv_capacity_tokens=workers.mean(series.WORKER_KV_CAPACITY_TOKENS),
        generated_tokens=workers.increase(series.WORKER_GENERATED_TOKENS),
        completions=routed(series.ROUTER_COMPLETIONS),
        completed_output_tokens=routed(f"{series.ROUTER_COMPLETED_TOKENS}:{series.OUTPUT}"),
        completed_context_tokens=routed(f"{series.ROUTER_COMPLETED_TOKENS}:{series.CONTEXT}"),
        tpot_total=ok + missed,
        tpot_ok=ok,
        rest_s=_rest_s(workers),
        **dict(zip(_LEARNED_OF_DECODE, learned, strict=True)),
    )
