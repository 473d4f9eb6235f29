"""PURE: the policies that others ship, as documented, to be compared with in the simulator.

Each is called with an `Observation` every scrape and answers with `Targets`. The signals are those
that its makers use, on our pools: requests in flight for HPA, KEDA, KPA and APA; busy time and KV
share for HPA on utilisation and for WVA; token rates for Dynamo and HeteroScale.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_operator.autoscaling.policy.observation import Observation, Pods, Targets
from disagg_operator.performance.profile import Profile

Policy = Callable[[Observation], Targets]


def _in_flight(o: Observation) -> tuple[float, float]:
    prefill, decode = o.prefill, o.decode
    return prefill.waiting_requests + prefill.running_requests, decode.waiting_requests + decode.running_requests


@dataclass
class HpaBehavior:
    """The default behaviour of HPA v2 (kubernetes.io, "Horizontal Pod Autoscaling").

    It goes up at once, by at most 4 pods or 100 % in 15 s, and down to the largest recommendation
    of the last five minutes.
    """

    down_window_s: float = 300.0
    up_window_s: float = 0.0
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # time and recommendation

    def decide(self, now_s: float, replicas: int, wanted: int) -> int:
        """Return the number of replicas after one more recommendation."""
        longest_s = max(self.down_window_s, self.up_window_s)
        while self.seen and self.seen[0][0] <= now_s - longest_s:
            self.seen.popleft()
        self.seen.append((now_s, wanted))
        highest = max(n for at, n in self.seen if at > now_s - self.down_window_s or at == now_s)
        lowest = min(n for at, n in self.seen if at > now_s - self.up_window_s or at == now_s)
        if lowest > replicas:
            return min(lowest, max(replicas + 4, 2 * replicas))
        return min(replicas, highest)


def _pods_metric(pods: Pods, total: float, target: float) -> int:
    """Return the pods that a metric of each ready pod asks for.

    Those that are not ready count nothing on the way up, and as on target on the way down.
    """
    if pods.ready == 0:
        return pods.replicas
    ratio = total / pods.ready / target
    missing = max(0, pods.replicas - pods.ready)
    if missing and abs(ratio - 1) > 0.1:
        adjusted = (total + (0.0 if ratio > 1 else missing * target)) / (pods.ready + missing) / target
        if (adjusted > 1) != (ratio > 1) or abs(adjusted - 1) <= 0.1:
            return pods.replicas
        return math.ceil(adjusted * (pods.ready + missing))
    return pods.replicas if abs(ratio - 1) <= 0.1 else math.ceil(pods.ready * ratio)


def _external_metric(pods: Pods, total: float, target: float) -> int:
    """Return the pods that the AverageValue of a metric without pods asks for."""
    if abs(total / (target * max(pods.replicas, 1)) - 1) <= 0.1:
        return pods.replicas
    return math.ceil(total / target)


@dataclass
class Hpa:
    """HPA v2 on the requests in flight of each pod, or on the share of time and of KV in use.

    KEDA gives it the requests as an external metric.
    """

    prefill: float  # target of a pod
    decode: float  # target of a pod
    signal: str = "queue"  # or "utilisation" or "external"
    behaviors: tuple[HpaBehavior, HpaBehavior] = field(default_factory=lambda: (HpaBehavior(), HpaBehavior()))

    def __call__(self, o: Observation) -> Targets:
        if o.blind:
            return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        totals = _in_flight(o)
        if self.signal == "utilisation":
            totals = o.prefill.busy_s / o.interval_s, o.decode.kv_tokens / o.decode.kv_capacity_tokens
        rule = _external_metric if self.signal == "external" else _pods_metric
        wanted = []
        pools, targets = (o.prefill.pods, o.decode.pods), (self.prefill, self.decode)
        for pods, total, target, behavior in zip(pools, totals, targets, self.behaviors, strict=True):
            wanted.append(behavior.decide(o.now_s, pods.replicas, rule(pods, total, target)))
        return Targets(wanted[0], wanted[1])


@dataclass
class Kpa:
    """Knative's KPA (knative.dev, "Autoscaling concepts").

    It holds the concurrency of the last 60 s at `utilisation` of the target. In panic it takes that
    of the last 6 s (here: of the last scrape); panic begins at twice of what the ready pods should
    take, ends 60 s after and never shrinks. It keeps at least half of what is ready, and a
    scale-down waits for `delay_s`.
    """

    prefill: float  # requests in flight of a pod
    decode: float  # requests in flight of a pod
    delay_s: float = 300.0
    utilisation: float = 0.7
    seen: deque[tuple[float, float, float]] = field(default_factory=deque)  # time, prefill, decode
    panic_until: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    most_in_panic: list[int] = field(default_factory=lambda: [0, 0])
    wanted: list[deque[tuple[float, int]]] = field(default_factory=lambda: [deque(), deque()])

    def __call__(self, o: Observation) -> Targets:
        if o.blind:
            return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        self.seen.append((o.now_s, *_in_flight(o)))
        while self.seen[0][0] <= o.now_s - 60.0:
            self.seen.popleft()
        targets = []
        pools = (o.prefill.pods, self.prefill), (o.decode.pods, self.decode)
        for i, (pods, concurrency) in enumerate(pools):
            ready, target = max(pods.ready, 1), self.utilisation * concurrency
            stable = math.ceil(sum(row[1 + i] for row in self.seen) / len(self.seen) / target)
            panic = math.ceil(self.seen[-1][1 + i] / target)
            want = max(stable, ready // 2)
            if panic / ready >= 2:
                self.panic_until[i] = o.now_s + 60.0
            if o.now_s <= self.panic_until[i]:
                self.most_in_panic[i] = want = max(want, panic, self.most_in_panic[i])
            else:
                self.most_in_panic[i] = 0
            history = self.wanted[i]
            history.append((o.now_s, want))
            while history[0][0] < o.now_s - self.delay_s:
                history.popleft()
            targets.append(max(n for _, n in history))
        return Targets(targets[0], targets[1])


@dataclass
class Apa:
    """AIBrix's APA.

    Outside of [1 - 0.2, 1 + 0.1] of the target per pod it scales in proportion, by a factor of two
    at most; down to the largest of its cool-down of 300 s. With the guard of its later versions
    pods that start count, with nothing in flight, or it would ask again and again for what they
    will carry.
    """

    prefill: float  # requests in flight of a pod
    decode: float  # requests in flight of a pod
    cool_down: tuple[HpaBehavior, HpaBehavior] = field(default_factory=lambda: (HpaBehavior(), HpaBehavior()))

    def __call__(self, o: Observation) -> Targets:
        if o.blind:
            return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        out = []
        pools = (o.prefill.pods, self.prefill), (o.decode.pods, self.decode)
        for (pods, target), flying, cool_down in zip(pools, _in_flight(o), self.cool_down, strict=True):
            n = max(pods.replicas, 1)
            use = flying / n / target
            wanted = n
            if use > 1.1:
                wanted = min(math.ceil(n * use), 2 * n)
            elif use < 0.8:
                wanted = max(math.ceil(n * use), n // 2)
            out.append(cool_down.decide(o.now_s, n, wanted))
        return Targets(out[0], out[1])


@dataclass
class _Kalman:
    """A local linear trend with q = (1, 0.1), r = 10, as in Dynamo's planner."""

    level: float = math.nan
    trend: float = 0.0
    p: tuple[float, float, float] = (10.0, 0.0, 1.0)

    def update(self, value: float) -> float:
        """Return the forecast of the next value."""
        if math.isnan(self.level):
            self.level = value
            return value
        level, trend = self.level + self.trend, self.trend
        p00, p01, p11 = self.p
        p00, p01, p11 = p00 + 2 * p01 + p11 + 1.0, p01 + p11, p11 + 0.1
        gain = p00 / (p00 + 10.0), p01 / (p00 + 10.0)
        error = value - level
        self.level, self.trend = level + gain[0] * error, trend + gain[1] * error
        self.p = ((1 - gain[0]) * p00, (1 - gain[0]) * p01, p11 - gain[1] * p01)
        return max(0.0, self.level + self.trend)


_DYNAMO_TTFT_S = 0.5  # its default


@dataclass
class Dynamo:
    """NVIDIA Dynamo's planner in throughput mode.

    Every 180 s it forecasts requests, mean prompt and mean output of the interval, and takes as
    many workers as the profile says at 100 %; of prefill no fewer than a mean prompt's time holds
    of its default TTFT.
    """

    profile: Profile
    tpot_s: float  # the objective
    margin: float = 1.0  # multiplies the workers; 1: as shipped
    interval_s: float = 180.0
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # of the interval so far
    due_s: float = math.nan  # end of the interval
    filters: tuple[_Kalman, ...] = field(default_factory=lambda: (_Kalman(), _Kalman(), _Kalman()))
    targets: Targets | None = None

    def __call__(self, o: Observation) -> Targets:
        if math.isnan(self.due_s):
            self.due_s = o.now_s + self.interval_s
        held = self.targets or Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        if o.blind:
            return held
        d = o.decode
        arrived, ended = (o.prefill.arrivals, o.prefill.prompt_tokens), (d.completions, d.completed_output_tokens)
        for i, v in enumerate((*arrived, *ended, o.interval_s)):
            self.sums[i] += v
        if o.now_s < self.due_s or not (self.sums[0] and self.sums[2]):
            return held
        requests, prompt, answers, output, seconds = self.sums
        self.sums, self.due_s = [0.0] * 5, o.now_s + self.interval_s
        means = requests / seconds, prompt / requests, output / answers
        rate, isl, osl = (f.update(v) for f, v in zip(self.filters, means, strict=True))
        prefill = rate * self.profile.isolated_s(isl)
        decode = rate * osl / self.profile.decode_tokens_per_s(self.tpot_s, isl + osl / 2)
        floor = math.ceil(self.profile.isolated_s(isl) / _DYNAMO_TTFT_S)
        workers = math.ceil(self.margin * prefill), math.ceil(self.margin * decode)
        self.targets = Targets(max(1, workers[0], floor), max(1, workers[1]))
        return self.targets


@dataclass
class Wva:
    """The WVA of llm-d, saturation by thresholds.

    Every 30 s it takes the highest share in use and the longest queue of a pod in the last minute.
    It wants one pod more when the share that is spare is under an eighth of the threshold (0.1 of
    0.80) or fewer than 3 of the 5 places in a pod's queue are free; one less if the others can take
    it; no change while pods start. Behind it stands an HPA: with its default behaviour, or with
    windows of `stabilization_s` both ways.
    """

    prefill: float  # threshold of the share in use
    decode: float  # threshold of the share in use
    stabilization_s: float | None = None
    due_s: float = -math.inf  # time of the next analysis
    seen: list[deque[tuple[float, float, float]]] = field(default_factory=lambda: [deque(), deque()])
    recommended: list[int] = field(default_factory=lambda: [0, 0])
    behaviors: tuple[HpaBehavior, HpaBehavior] = field(default_factory=lambda: (HpaBehavior(), HpaBehavior()))

    def __post_init__(self) -> None:
        if self.stabilization_s is not None:
            self.behaviors = (
                HpaBehavior(self.stabilization_s, self.stabilization_s),
                HpaBehavior(self.stabilization_s, self.stabilization_s),
            )

    def __call__(self, o: Observation) -> Targets:
        if o.blind:
            return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        uses = o.prefill.busy_s / o.interval_s, o.decode.kv_tokens / o.decode.kv_capacity_tokens
        waiting = o.prefill.waiting_requests, o.decode.waiting_requests
        due = o.now_s >= self.due_s
        if due:
            self.due_s = o.now_s + _WVA_LOOP_S
        out = []
        pools = (o.prefill.pods, self.prefill), (o.decode.pods, self.decode)
        for i, (pods, limit) in enumerate(pools):
            ready, seen = max(pods.ready, 1), self.seen[i]
            seen.append((o.now_s, uses[i] / ready, waiting[i] / ready))
            while seen[0][0] <= o.now_s - 60.0:
                seen.popleft()
            if due:
                use, queue = max(row[1] for row in seen), max(row[2] for row in seen)
                self.recommended[i] = _wva_step(pods, limit, use, queue)
            out.append(self.behaviors[i].decide(o.now_s, pods.replicas, self.recommended[i]))
        return Targets(out[0], out[1])


_WVA_LOOP_S = 30.0
_WVA_QUEUE, _WVA_QUEUE_SPARE = 5.0, 3.0  # requests a pod


def _wva_step(pods: Pods, limit: float, use: float, queue: float) -> int:
    """Return how many pods there should be, by one analysis."""
    if pods.ready < pods.replicas:
        return pods.replicas

    def short(load: float) -> bool:  # each pod carries `load` times what it does
        return limit - load * use < limit / 8 or _WVA_QUEUE - load * queue < _WVA_QUEUE_SPARE

    if short(1.0):
        return pods.replicas + 1
    return pods.replicas if pods.ready < 2 or short(pods.ready / (pods.ready - 1)) else pods.replicas - 1


@dataclass
class HeteroScale:
    """ByteDance's HeteroScale (arXiv 2508.19559).

    Its one signal is the decode tokens per second of a decode pod; prefill follows at a fixed
    ratio. It has a dead band of 10 % and a cool-down after scaling down.
    """

    profile: Profile
    tpot_s: float  # the objective
    utilisation: float = 0.5  # of the most tokens per second of a pod
    prefill_per_decode: float = 2.4  # pods
    cool_down_s: float = 300.0
    changed_s: float = -math.inf  # time of the last change
    context_tokens: float = 1000.0  # mean of the requests that ended

    def __call__(self, o: Observation) -> Targets:
        d = o.decode
        if o.blind:
            return Targets(o.prefill.pods.replicas, d.pods.replicas)
        if d.completions > 0:
            self.context_tokens += 0.1 * (d.completed_context_tokens / d.completions - self.context_tokens)
        target = self.utilisation * self.profile.decode_tokens_per_s(self.tpot_s, self.context_tokens)
        n = d.pods.replicas
        ratio = d.generated_tokens / o.interval_s / (n * target)
        wanted = n
        if ratio > 1.1 or (ratio < 0.9 and o.now_s - self.changed_s >= self.cool_down_s):
            wanted = max(1, math.ceil(n * ratio))
        if wanted != n:
            self.changed_s = o.now_s
        return Targets(math.ceil(wanted * self.prefill_per_decode), wanted)


def all_of(profile: Profile, tpot_s: float) -> dict[str, Policy]:
    """Return fresh instances by name.

    The settings are the cheapest that kept 99 % on the trace servegen_m-large_d4 alone; those
    called defaults are as shipped.
    """
    return {
        "APA (2, 56)": Apa(2, 56),
        "HPA queue (1.5, 56)": Hpa(1.5, 56),
        "HPA utilisation (0.5, 0.11)": Hpa(0.5, 0.11, "utilisation"),
        "KEDA (1, 48)": Hpa(1, 48, "external"),
        "KPA (2, 80)": Kpa(2, 80),
        "Dynamo default": Dynamo(profile, tpot_s),
        "Dynamo x2": Dynamo(profile, tpot_s, 2.0),
        "WVA (0.7, 0.13)": Wva(0.7, 0.13),
        "WVA (0.7, 0.13) + HPA 240 s": Wva(0.7, 0.13, 240.0),
        "HeteroScale (0.5, 2.4)": HeteroScale(profile, tpot_s),
    }
