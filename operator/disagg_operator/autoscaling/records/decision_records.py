"""PURE: Writes and reads the records of decisions, and asks policies for their decisions again."""

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
from disagg_operator.autoscaling.records import codec, former_releases

_LAST_S = 32_503_680_000.0  # the year 3000


class JournalError(ValueError):
    """Raised for lines that are not records; the message has the number of the line."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the observation, the answer of the policy, and the decisions of the operator."""

    observation: Observation
    """The observation that the policy was given."""
    targets: Targets
    """The answer of the policy."""
    decided: dict[str, int]
    """The replicas that the operator decided on, by pool."""
    reasons: dict[str, str]
    """The reasons of these decisions, by pool."""
    dry_run: bool
    """Whether the decisions were only shown and not carried out."""
    samples: dict[str, queue_depth.QueueSample] = field(default_factory=dict)
    """The samples for the policy `queue`, by pool."""

    @property
    def blind(self) -> bool:
        """Whether a pool was held because metrics were missing."""
        return METRICS_UNAVAILABLE in self.reasons.values()


Policy = Callable[[Step], Targets]


@dataclass(frozen=True, slots=True)
class Run:
    """Steps of one policy from a known state on, during the life of an operator or a part of it."""

    settings: Settings
    """The settings of the predictive policy."""
    state: State
    """The state of the predictive policy before the first step."""
    steps: list[Step] = field(default_factory=list)
    """The steps, oldest first."""
    queue: QueueStart | None = None
    """The start of the policy `queue`, if that is the policy of the run."""


def read(lines: Iterable[str]) -> list[Run]:
    """Parse the lines of a log. Raises JournalError.

    A line whose writing was interrupted (the last line, or one before a new beginning) is left out.
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


def merged(logs: Iterable[str]) -> str:
    """Return the logs of several operators, each of which led for a time, as one log.

    The runs are ordered by their beginnings; those of a single operator stay as they are.
    """
    runs: list[tuple[float, list[str]]] = []
    found = [log for log in logs if log.strip()]
    if len(found) < 2:
        return "".join(found)
    for log in found:
        run: list[str] = []
        for line in log.splitlines():
            if line.startswith('{"begin"') or not run:
                run = []
                runs.append((_begun_s(line), run))
            run.append(line)
    return "".join(f"{line}\n" for _, run in sorted(runs, key=lambda r: r[0]) for line in run)


def _begun_s(line: str) -> float:
    try:
        return float(json.loads(line)["t"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0.0


def beginning(outcome: Outcome) -> dict[str, Any]:
    """Return the line before the first step of a run, from which the run can be repeated.

    It holds the state of the predictive policy even if the policy is `queue`, so that the
    predictive policy can be asked for its decisions on the same observations.
    """
    line = {"begin": True, "t": outcome.observation.now_s, "settings": codec.plain(outcome.settings)}
    line |= {"state": codec.plain(outcome.before)}
    return line if outcome.queue is None else line | {"queue": codec.plain(outcome.queue)}


def step_line(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    """Return the line of one step: the observation, the answer, the decisions and their reasons."""
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
    settings, state = former_releases.settings(raw["settings"]), former_releases.state(raw["state"])
    return Run(codec.parse(Settings, settings), codec.parse(State, state), queue=queue)


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
    targets = codec.parse(Targets, former_releases.targets(raw["targets"]))
    return Step(o, targets, decided, reasons, bool(raw.get("dryRun")), samples)


def replay(runs: Sequence[Run], policy_of: Callable[[Run], Policy]) -> list[Targets]:
    """Return the answers of a policy to the same observations, step by step.

    The observations stay as they were, although other decisions would have led to other workers.
    The answers therefore show where the policy differs, and not where it would have ended.
    """
    out = []
    for run in runs:
        answer = policy_of(run)
        out += [answer(step) for step in run.steps]
    return out


def predictive_policy(settings: Settings, state: State) -> Policy:
    """Return the predictive policy from a state on."""

    def answer(step: Step) -> Targets:
        nonlocal state
        targets, state = predictive.step(settings, step.observation, state)
        return targets

    return answer


def queue_policy(queue: QueueStart) -> Policy:
    """Return the policy `queue` from a state on.

    For records of another policy it uses the sums that this policy observed.
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
    """Return the steps of all runs from a time on."""
    return [step for run in runs for step in run.steps if step.observation.now_s >= since_s]


def columns(steps: Sequence[Step], targets: Sequence[Targets] | None = None) -> dict[str, list[float]]:
    """Return the columns of `plots.Timeline`, with times in seconds from the first step on.

    `targets` are those of another policy, instead of the decisions.
    """
    began_s = min((step.observation.now_s for step in steps), default=0.0)
    out: dict[str, list[float]] = {}
    for i, step in enumerate(steps):
        o, p, d = step.observation, step.observation.prefill, step.observation.decode
        wanted = targets[i] if targets is not None else step.targets
        row = {
            "t_s": o.now_s - began_s + o.interval_s, "arrivals": p.arrivals, "prompt_tokens": p.prompt_tokens,
            "generated_tokens": d.generated_tokens,
            "waiting_requests": p.waiting_requests, "decode_waiting": d.waiting_requests,
            "ttft_total": p.ttft_total, "ttft_ok": p.ttft_ok, "tpot_total": d.tpot_total, "tpot_ok": d.tpot_ok,
            "prefill_ready": float(p.pods.ready), "decode_ready": float(d.pods.ready),
            "prefill_desired": float(
                wanted.prefill if targets is not None else step.decided.get("prefill", p.pods.replicas)
            ),
            "decode_desired": float(
                wanted.decode if targets is not None else step.decided.get("decode", d.pods.replicas)
            ),
        }  # fmt: skip
        for name, value in row.items():
            out.setdefault(name, []).append(value)
    return out
