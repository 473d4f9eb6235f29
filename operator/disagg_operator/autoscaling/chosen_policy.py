"""PURE: One step of the policy that a resource has chosen: `predictive` or `queue`.

The loop of the operator and `disagg local` both decide here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy import guard, queue_pools
from disagg_operator.autoscaling.policy.guard import Outcome, Predicting
from disagg_operator.autoscaling.policy.memory import State
from disagg_operator.autoscaling.policy.queue_depth import QueueMemory
from disagg_operator.autoscaling.policy.queue_pools import QueueStart
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.fold import Memory
from disagg_operator.autoscaling.signals.policy_inputs import Seen


@dataclass(frozen=True, slots=True)
class PolicyMemory:
    """The state of one deployment between steps; the empty state is a safe start."""

    counters: Memory = field(default_factory=Memory)
    """The previous look at the pods' counters."""
    predicting: Predicting = field(default_factory=Predicting)
    """The memory of the predictive policy."""
    queues: Mapping[str, QueueMemory] = field(default_factory=dict)
    """The memory of the policy `queue`, by pool."""


def step(
    plan: ScalePlan, seen: Seen, memory: PolicyMemory, flips_s: Sequence[float] = ()
) -> tuple[Outcome | None, PolicyMemory]:
    """Process one look. The outcome is None if nothing is decided and everything stays.

    `flips_s` is how long the last role flips took, in seconds.
    """
    memory = replace(memory, counters=seen.counters)
    if not plan.predictive:
        return _queue(plan, seen, memory)
    # Increases of counters are known from the second look on, and after that whenever they have
    # been scraped again.
    if not seen.fresh or seen.first:
        return None, memory
    settings = plan.settings
    if settings.role_flip_s is not None and flips_s:
        settings = replace(settings, role_flip_s=sum(flips_s) / len(flips_s))
    outcome, predicting = guard.step(settings, plan.policies, plan.down_windows_s, seen.folded, memory.predicting)
    return outcome, replace(memory, predicting=predicting)


def _queue(plan: ScalePlan, seen: Seen, memory: PolicyMemory) -> tuple[Outcome, PolicyMemory]:
    o = seen.folded.observation
    before = {pool: memory.queues.get(pool, QueueMemory()) for pool in plan.policies}
    samples = {pool: seen.samples[pool] for pool in plan.policies}
    decisions, after = queue_pools.step(plan.policies, before, samples, o)
    outcome = Outcome(
        observation=o,
        targets=queue_pools.targets(o, decisions),
        decisions=decisions,
        settings=guard.fixed(plan.settings, plan.policies, o),
        before=State(),
        queue=QueueStart(dict(plan.policies), before),
        samples=samples,
    )
    return outcome, replace(memory, queues=after)
