"""PURE: the policies that others ship, as they are documented, to be compared with in the simulator.

Each is called with an `Observation` every scrape and answers with `Targets`. Signals are those that its makers use, on our pools: requests
in flight for HPA, KEDA, KPA and APA; busy time and KV share for HPA on utilisation and for WVA; token rates for Dynamo and HeteroScale.
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
    return o.prefill.waiting_requests + o.prefill.running_requests, o.decode.waiting_requests + o.decode.running_requests


@dataclass
class HpaBehavior:
    """HPA v2's default behaviour (kubernetes.io, "Horizontal Pod Autoscaling"): up by at most 4 pods or 100 % in 15 s and at once; down to
    the largest recommendation of the last five minutes."""

    down_window_s: float = 300.0
    up_window_s: float = 0.0
    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now_s: float, replicas: int, wanted: int) -> int:
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
    """A metric of each ready pod. Those that are not ready count nothing on the way up, and as on target on the way down."""
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
    """AverageValue of a metric that knows no pods."""
    if abs(total / (target * max(pods.replicas, 1)) - 1) <= 0.1:
        return pods.replicas
    return math.ceil(total / target)


@dataclass
class Hpa:
    """HPA v2 on requests in flight a pod (`queue`) or on the share of time or of KV in use (`utilisation`). KEDA: the same metric as an
    external one."""

    prefill: float
    decode: float
    signal: str = "queue"
    behaviors: tuple[HpaBehavior, HpaBehavior] = field(default_factory=lambda: (HpaBehavior(), HpaBehavior()))

    def __call__(self, o: Observation) -> Targets:
        if o.blind:
            return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        totals = _in_flight(o)
        if self.signal == "utilisation":
            totals = o.prefill.busy_s / o.interval_s, o.decode.kv_tokens / o.decode.kv_capacity_tokens
        rule = _external_metric if self.signal == "external" else _pods_metric
        wanted = []
        for pods, total, target, behavior in zip(
            (o.prefill.pods, o.decode.pods), totals, (self.prefill, self.decode), self.behaviors, strict=True
        ):
            wanted.append(behavior.decide(o.now_s, pods.replicas, rule(pods, total, target)))
        return Targets(wanted[0], wanted[1])


@dataclass
class Kpa:
    """Knative's KPA (knative.dev, "Autoscaling concepts"): `utilisation` of the concurrency that is given, over 60 s; over 6 s (here: the
    last scrape) in panic, which begins at twice of what the ready pods should take, ends 60 s after and never shrinks; at least half of
    what is ready; a scale-down waits for `delay_s`."""

    prefill: float
    decode: float
    delay_s: float = 300.0
    utilisation: float = 0.7
    seen: deque[tuple[float, float, float]] = field(default_factory=deque)
    panic_until: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    most_in_panic: list[int] = field(default_factory=lambda: [0, 0])
    wanted: tuple[deque[tuple[float, int]], deque[tuple[float, int]]] = field(default_factory=lambda: (deque(), deque()))

    def __call__(self, o: Observation) -> Targets:
        if o.blind:
            return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        self.seen.append((o.now_s, *_in_flight(o)))
        while self.seen[0][0] <= o.now_s - 60.0:
            self.seen.popleft()
        targets = []
        for i, (pods, concurrency) in enumerate(((o.prefill.pods, self.prefill), (o.decode.pods, self.decode))):
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
    """AIBrix's APA: outside of [1 - 0.2, 1 + 0.1] of the target per pod in proportion, by a factor of two at most; down to the largest of
    its cool-down of 300 s. With the guard of its later versions: pods that start count, with nothing in flight, or it would ask for what
    they will carry again and again."""

    prefill: float
    decode: float
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
    """Local linear trend with q = (1, 0.1), r = 10, as in Dynamo's planner."""

    level: float = math.nan
    trend: float = 0.0
    p: tuple[float, float, float] = (10.0, 0.0, 1.0)

    def update(self, value: float) -> float:
        """The forecast of the next value."""
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
    """NVIDIA Dynamo's planner, throughput mode: every 180 s, from the forecast of requests, mean prompt and mean output of the interval, so
    many workers as the profile says at 100 %, of prefill no fewer than a mean prompt's time holds of its default TTFT; `margin` multiplies
    it (1: as shipped)."""

    profile: Profile
    tpot_s: float
    margin: float = 1.0
    interval_s: float = 180.0
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    due_s: float = math.nan
    filters: tuple[_Kalman, _Kalman, _Kalman] = field(default_factory=lambda: (_Kalman(), _Kalman(), _Kalman()))
    targets: Targets | None = None

    def __call__(self, o: Observation) -> Targets:
        if math.isnan(self.due_s):
            self.due_s = o.now_s + self.interval_s
        held = self.targets or Targets(o.prefill.pods.replicas, o.decode.pods.replicas)
        if o.blind:
            return held
        d = o.decode
        for i, v in enumerate((o.prefill.arrivals, o.prefill.prompt_tokens, d.completions, d.completed_output_tokens, o.interval_s)):
            self.sums[i] += v
        if o.now_s < self.due_s or not (self.sums[0] and self.sums[2]):
            return held
        requests, prompt, ended, output, seconds = self.sums
        self.sums, self.due_s = [0.0] * 5, o.now_s + self.interval_s
        rate, isl, osl = (f.update(v) for f, v in zip(self.filters, (requests / seconds, prompt / requests, output / ended), strict=True))
        prefill = rate * self.profile.isolated_s(isl)
        decode = rate * osl / self.profile.decode_tokens_per_s(self.tpot_s, isl + osl / 2)
        floor = math.ceil(self.profile.isolated_s(isl) / _DYNAMO_TTFT_S)
        self.targets = Targets(max(1, math.ceil(self.margin * prefill), floor), max(1, math.ceil(self.margin * decode)))
        return self.targets


@dataclass
class Wva:
    """llm-d's WVA, saturation by thresholds: every 30 s, on the highest share in use and the longest queue a pod of the last minute, one
    pod more when the share that is spare is under an eighth of the threshold (0.1 of 0.80) or less than 3 of 5 places in its queue are;
    one less if the others can take it; nothing while pods start. Behind it stands an HPA: with its default behaviour, or with windows of
    `stabilization_s` both ways."""

    prefill: float
    decode: float
    stabilization_s: float | None = None
    due_s: float = -math.inf
    seen: tuple[deque[tuple[float, float, float]], deque[tuple[float, float, float]]] = field(default_factory=lambda: (deque(), deque()))
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
        for i, (pods, limit) in enumerate(((o.prefill.pods, self.prefill), (o.decode.pods, self.decode))):
            ready, seen = max(pods.ready, 1), self.seen[i]
            seen.append((o.now_s, uses[i] / ready, waiting[i] / ready))
            while seen[0][0] <= o.now_s - 60.0:
                seen.popleft()
            if due:
                self.recommended[i] = _wva_step(pods, limit, max(row[1] for row in seen), max(row[2] for row in seen))
            out.append(self.behaviors[i].decide(o.now_s, pods.replicas, self.recommended[i]))
        return Targets(out[0], out[1])


_WVA_LOOP_S = 30.0
_WVA_QUEUE, _WVA_QUEUE_SPARE = 5.0, 3.0  # requests a pod


def _wva_step(pods: Pods, limit: float, use: float, queue: float) -> int:
    """One analysis: how many pods there should be."""
    if pods.ready < pods.replicas:
        return pods.replicas

    def short(load: float) -> bool:  # of spare room, when each pod carries `load` times what it does
        return limit - load * use < limit / 8 or _WVA_QUEUE - load * queue < _WVA_QUEUE_SPARE

    if short(1.0):
        return pods.replicas + 1
    return pods.replicas if pods.ready < 2 or short(pods.ready / (pods.ready - 1)) else pods.replicas - 1


@dataclass
class HeteroScale:
    """ByteDance's HeteroScale (arXiv 2508.19559): decode tokens a second of each decode pod is the one signal, prefill follows at a fixed
    ratio (`prefill_per_decode`); a dead band of 10 % and a cool-down after scaling down."""

    profile: Profile
    tpot_s: float
    utilisation: float = 0.5
    prefill_per_decode: float = 2.4
    cool_down_s: float = 300.0
    changed_s: float = -math.inf
    context_tokens: float = 1000.0

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
    """Fresh instances by name. The settings are the cheapest that kept 99 % on the trace servegen_m-large_d4 alone; those called defaults
    are as shipped."""
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
