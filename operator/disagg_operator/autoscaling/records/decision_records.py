"""PURE: the records of decisions, read back: what was seen and decided, and what another policy
would decide from the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from disagg_operator.autoscaling.policy import predictive, queue_depth, queue_pools
from disagg_operator.autoscaling.policy.decision import METRICS_UNAVAILABLE
from disagg_operator.autoscaling.policy.guard import Outcome
from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.autoscaling.policy.predictive import Settings, State
from disagg_operator.autoscaling.policy.queue_pools import QueueStart
from disagg_operator.autoscaling.records import codec

_LAST_S = 32_503_680_000.0  # the year 3000


class JournalError(ValueError):
    """Lines that are no records; the message has the number of the line."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was seen, what the policy answered, and what the operator made of it, by pool.

    `samples`: what the policy queue goes by.
    """

    observation: Observation
    targets: Targets
    decided: dict[str, int]
    reasons: dict[str, str]
    dry_run: bool
    samples: dict[str, queue_depth.QueueSample] = field(default_factory=dict)

    @property
    def blind(self) -> bool:
        """Some pool was held because data was missing."""
        return METRICS_UNAVAILABLE in self.reasons.values()


Policy = Callable[[Step], Targets]


@dataclass(frozen=True, slots=True)
class Run:
    """Steps of one policy from a known state on: an operator's life, or part of it.

    `queue`: where the policy queue began, if that is the one.
    """

    settings: Settings
    state: State
    steps: list[Step] = field(default_factory=list)
    queue: QueueStart | None = None


def read(lines: Iterable[str]) -> list[Run]:
    """Raises JournalError.

    The line that a writer was killed in (the last one, or before a new beginning) is left out.
    """
    runs: list[Run] = []
    broken: JournalError | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            if broken is not None or not runs:
                raise broken or JournalError(f"line {number}: {error}") from None
            broken = JournalError(f"line {number}: {error}")
            continue
        begins = isinstance(raw, dict) and bool(raw.get("begin"))
        if broken is not None and not begins:
            raise broken
        broken = None
        try:
            if begins:
                runs.append(_beginning(raw))
            elif not runs:
                raise ValueError("the first line is no beginning")
            else:
                runs[-1].steps.append(_step(raw, runs[-1].queue))
        except KeyError as error:
            raise JournalError(f"line {number}: no field {error}") from None
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise JournalError(f"line {number}: {error}") from None
    return runs


def beginning(outcome: Outcome) -> dict[str, Any]:
    """Return the line before the first step of a run: where it starts from, so that it can be made again.

    It has the state of the predictive policy even where the policy is `queue`, so that the predictive
    policy can be asked what it would have done.
    """
    line = {"begin": True, "t": outcome.observation.now_s, "settings": codec.plain(outcome.settings)}
    line |= {"state": codec.plain(outcome.before)}
    return line if outcome.queue is None else line | {"queue": codec.plain(outcome.queue)}


def step_line(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    """Return the line of one step: what was seen, answered and decided, and why."""
    line = {
        "t": outcome.observation.now_s,
        "observation": codec.plain(outcome.observation),
        "targets": codec.plain(outcome.targets),
        "decided": {pool: decision.to for pool, decision in outcome.decisions.items()},
        "reasons": {pool: decision.reason for pool, decision in outcome.decisions.items()},
        "dryRun": dry_run,
    }
    return line if outcome.queue is None else line | {"samples": codec.plain(dict(outcome.samples))}


def _beginning(raw: dict[str, Any]) -> Run:
    queue = codec.parse(QueueStart, raw["queue"]) if "queue" in raw else None
    if queue is not None:
        queue_pools.check(queue.pools)
    return Run(codec.parse(Settings, raw["settings"]), codec.parse(State, raw["state"]), queue=queue)


def _step(raw: dict[str, Any], queue: QueueStart | None) -> Step:
    decided = {str(k): int(v) for k, v in raw["decided"].items()}
    reasons = {str(k): str(v) for k, v in raw["reasons"].items()}
    o = codec.parse(Observation, raw["observation"])
    if not 0 <= o.now_s < _LAST_S:
        raise ValueError(f"Observation.now_s: {o.now_s:g} is no time of this millennium, in seconds since 1970")
    if not (o.interval_s > 0 or (o.interval_s == 0 and o.blind)):
        raise ValueError(f"Observation.interval_s: {o.interval_s:g} is not more than 0")
    samples = {
        pool: codec.parse(queue_depth.QueueSample, raw["samples"][pool])
        for pool in (queue.pools if queue is not None else ())
    }
    return Step(o, codec.parse(Targets, raw["targets"]), decided, reasons, bool(raw.get("dryRun")), samples)


def replay(runs: Sequence[Run], policy_of: Callable[[Run], Policy]) -> list[Targets]:
    """What a policy answers to the same observations, step by step.

    The observations stay as they were: had it decided otherwise, other workers would have served,
    so this shows where it differs and not where it would have ended.
    """
    out = []
    for run in runs:
        answer = policy_of(run)
        out += [answer(step) for step in run.steps]
    return out


def predictive_policy(settings: Settings, state: State) -> Policy:
    """The predictive policy from a state on."""

    def answer(step: Step) -> Targets:
        nonlocal state
        targets, state = predictive.step(settings, step.observation, state)
        return targets

    return answer


def queue_policy(queue: QueueStart) -> Policy:
    """The policy queue from a state on.

    Where another policy decided then, by the sums that this one saw.
    """
    states = queue.states

    def answer(step: Step) -> Targets:
        nonlocal states
        o = step.observation
        samples = {pool: step.samples.get(pool) or queue_pools.sample_of(o, pool) for pool in queue.pools}
        decisions, states = queue_pools.step(queue.pools, states, samples, o)
        return queue_pools.targets(o, decisions)

    return answer


def steps_of(runs: Sequence[Run], since_s: float = -math.inf) -> list[Step]:
    return [step for run in runs for step in run.steps if step.observation.now_s >= since_s]


def columns(steps: Sequence[Step], targets: Sequence[Targets] | None = None) -> dict[str, list[float]]:
    """As `plots.Timeline` wants them, times from the first step on.

    `targets`: of another policy, instead of what was decided.
    """
    began_s = min((step.observation.now_s for step in steps), default=0.0)
    out: dict[str, list[float]] = {}
    for i, step in enumerate(steps):
        o, p, d = step.observation, step.observation.prefill, step.observation.decode
        wanted = targets[i] if targets is not None else step.targets
        row = {
            "t_s": o.now_s - began_s + o.interval_s, "arrivals": p.arrivals, "prompt_tokens": p.prompt_tokens,
            "generated_tokens": d.generated_tokens, "waiting_requests": p.waiting_requests, "decode_waiting": d.waiting_requests,
            "ttft_total": p.ttft_total, "ttft_ok": p.ttft_ok, "tpot_total": d.tpot_total, "tpot_ok": d.tpot_ok,
            "prefill_ready": float(p.pods.ready), "decode_ready": float(d.pods.ready),
            "prefill_desired": float(wanted.prefill if targets is not None else step.decided.get("prefill", p.pods.replicas)),
            "decode_desired": float(wanted.decode if targets is not None else step.decided.get("decode", d.pods.replicas)),
        }  # fmt: skip
        for name, value in row.items():
            out.setdefault(name, []).append(value)
    return out
