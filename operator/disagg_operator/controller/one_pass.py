"""The data that one run of the reconciler gathers."""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_operator.autoscaling.live import Live
from disagg_operator.controller.acceptance import AcceptedDeployment
from disagg_operator.controller.children import ChildKey, Children
from disagg_operator.controller.judge import Judgement
from disagg_operator.controller.replicas import Replicas
from disagg_operator.controller.rollout_step import RolloutStep
from disagg_operator.controller.runtime_updates import ChosenRuntime
from disagg_operator.controller.views import View
from disagg_operator.desired.names import pool_name
from disagg_operator.kube.client import Kube
from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_POOL, labels_of
from disagg_operator.rollout.values import WorkersKey
from disagg_operator.status.events import Note
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_POOL, LABEL_REVISION


@dataclass(slots=True)
class Pass:
    """The data that one run has gathered so far."""

    key: Key
    resource: Obj
    served: Obj
    """The resource with the spec that is served and the generation of that."""
    live: Live
    view: View
    """What was read, and the door through which is written."""
    judgement: Judgement
    runtime: ChosenRuntime
    pools: dict[str, Replicas] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    blocked: frozenset[ChildKey] = frozenset()
    """The objects that the API server refuses now; they are left as they are."""
    step: RolloutStep | None = None
    """The next step of the rollout."""

    waits_s: list[float] = field(default_factory=list)
    """When to run again, because something was left as it is for now."""
    sizes: dict[WorkersKey, int] = field(default_factory=dict)
    """The replicas of workloads whose workers drain before they go."""

    @property
    def children(self) -> Children:
        """The live objects, with what this run has written."""
        return self.view.children

    @property
    def kube(self) -> Kube:
        """The door through which this run writes."""
        return self.view.kube

    @property
    def plan(self) -> AcceptedDeployment:
        """What is served."""
        return self.judgement.plan

    def size_of(self, workload: Obj, wanted: int) -> int:
        """Return the replicas that a Deployment of workers may have now."""
        labels = labels_of(workload)
        return self.sizes.get((labels.get(LABEL_POOL, ""), labels.get(LABEL_REVISION, "")), wanted)

    def sized(self, obj: Obj) -> Obj:
        """Return an object to apply, with the replicas that it may have now."""
        if obj["kind"] != DEPLOYMENT.kind:
            return obj
        return {**obj, "spec": {**obj["spec"], "replicas": self.size_of(obj, obj["spec"]["replicas"])}}

    def pool(self, role: str) -> Obj | None:
        """Return the DisaggPool of a role, or None if it does not exist."""
        return self.children.get(DISAGG_POOL.kind, pool_name(self.key[1], role))
