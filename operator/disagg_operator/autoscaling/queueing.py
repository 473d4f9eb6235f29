"""The policy queue in the operator: stepped and recorded.

What it remembers lies in the resource's `Live` entry; a restart begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from disagg_operator.autoscaling.live import Live, Scaling
from disagg_operator.autoscaling.policy import guard, proportional
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.observation import Observation
from disagg_operator.autoscaling.policy.predictive import State
from disagg_operator.autoscaling.policy.proportional import Queue
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.records import codec
from disagg_operator.autoscaling.records.decision_log import Records
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.vocabulary import Key


class Queueing:
    """Shared by all deployments."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def step(
        self, key: Key, entry: Live, plan: ScalePlan, o: Observation, samples: Mapping[str, QueueSample]
    ) -> Mapping[str, Decision]:
        """One step of the pools that are scaled, recorded with all that is needed to make it again."""
        states = {pool: entry.pools.setdefault(pool, Scaling()).state for pool in plan.policies}
        decisions, after = proportional.step(plan.policies, states, samples, o)
        for pool, state in after.items():
            entry.pools[pool].state = state
        begin = Queue(dict(plan.policies), states)
        settings = guard.fixed(plan.settings, plan.policies, o)
        if self._records.must_begin(key, (begin.pools, settings)):
            # With what the other policy starts from, so that it can be asked what it would have
            # done.
            head = {"begin": True, "t": o.now_s, "settings": codec.plain(settings), "state": codec.plain(State())}
            self._records.write(key, {**head, "queue": codec.plain(begin)}, begins=(begin.pools, settings))
        line = {"t": o.now_s, "observation": codec.plain(o), "targets": codec.plain(proportional.targets(o, decisions))}
        line |= {
            "decided": {p: d.to for p, d in decisions.items()},
            "reasons": {p: d.reason for p, d in decisions.items()},
        }
        self._records.write(
            key, {**line, "dryRun": plan.dry_run, "samples": codec.plain({p: samples[p] for p in plan.policies})}
        )
        return decisions
