"""An operator's reconciler over a cluster in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from tests.fakes.kube import FakeKube

from disagg_operator.api.namespace_policy import Policy
from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.signals.direct import Target
from disagg_operator.controller.accepted_specs import SpecsInConfigMaps
from disagg_operator.controller.drainer import Drainer
from disagg_operator.controller.drift import APPLIED_HASH
from disagg_operator.controller.judge import Judge
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.reconciler import Reconciler
from disagg_operator.controller.reference_watch import ReferenceWatch
from disagg_operator.controller.runtime_updates import RuntimeUpdates
from disagg_operator.controller.spec_seal import SpecSeal
from disagg_operator.controller.views import Views
from disagg_operator.desired import Images
from disagg_operator.kube.cache import KEPT, Cache
from disagg_operator.status.recorder import Recorder
from disagg_operator.vocabulary import Key

KEY = ("default", "chat")
SPEC: dict[str, Any] = {
    "model": {"uri": "file:///models/stdlib-llama"},
    "prefill": {"replicas": 1},
    "decode": {"replicas": 2},
    "router": {"replicas": 1},
}


def resource(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggDeployment",
        "metadata": {"name": KEY[1], "namespace": KEY[0]},
        "spec": {**copy.deepcopy(SPEC), **spec},
    }


class World:
    """A cluster, an operator, and a clock that stands still."""

    def __init__(self, **spec: Any) -> None:
        self.kube = FakeKube()
        self.kube.put(resource(**spec))
        self.policy = Policy()
        self.clock = 0.0
        self.now = "2026-01-01T00:00:00Z"
        self.images = Images(worker="w:1", router="r:1")
        self.runtime_updates = 0
        self.clock_s = 0.0
        self.restart()

    def seal(self) -> SpecSeal | None:
        """Return what seals the accepted specs in a new process."""
        return None

    def restart(self) -> None:
        self.live = LiveTable()
        self.woken: list[Key] = []
        self.references = ReferenceWatch(self.kube, self.woken.append, lambda: self.clock)
        self.metrics = Metrics()
        self.drainer = Drainer(self.kube, self.ask, self.woken.append, lambda: self.clock_s, lambda: None)
        self.updates = RuntimeUpdates(self.runtime_updates, lambda key: None)
        self.cache = Cache()
        self.views = Views(self.kube, self.cache, lambda: self.clock_s)
        self.reconciler = Reconciler(
            kube=self.kube,
            live=self.live,
            recorder=Recorder(self.kube, lambda: self.clock_s, lambda: self.now, lambda: f"id{len(self.kube.events)}"),
            judge=Judge(SpecsInConfigMaps(self.kube, self.seal()), self.references, self.policy),
            metrics=self.metrics,
            drainer=self.drainer,
            images=self.images,
            updates=self.updates,
            wall=lambda: self.now,
            new_cluster_key=lambda: "ab" * 32,
            clock=lambda: self.clock_s,
            views=self.views,
        )

    async def ask(self, target: Target, content: Mapping[str, Any]) -> int | None:
        """Answer for a worker that is asked to drain."""
        return None

    async def run(self) -> float | None:
        """Reconcile with a cache that has seen every change, as Runtime does."""
        for kind in KEPT:
            self.cache.replace(kind, await self.kube.list(kind))
        try:
            return await self.reconciler.run(KEY)
        except BaseException:
            self.views.doubt((KEY,))
            raise

    async def settle(self) -> None:
        for _ in range(5):
            before = len(self.kube.log)
            await self.run()
            if len(self.kube.log) == before:
                return
        pytest.fail(f"no fixed point: {self.kube.log[-10:]}")

    def edit(self, **spec: Any) -> None:
        found = copy.deepcopy(self.kube.find("DisaggDeployment", "chat"))
        found["spec"].update(spec)
        self.kube.put(found)

    def status(self) -> dict[str, Any]:
        return dict(self.kube.find("DisaggDeployment", "chat")["status"])

    def condition(self, kind: str) -> dict[str, Any]:
        return next(c for c in self.status()["conditions"] if c["type"] == kind)

    def replicas(self, role: str) -> tuple[int, int]:
        """Return the replicas of the DisaggPool and of its Deployment."""
        name = f"chat-{role}"
        return (
            self.kube.find("DisaggPool", name)["spec"]["replicas"],
            self.kube.find("Deployment", name)["spec"]["replicas"],
        )

    def decide(self, role: str, current: int, to: int) -> None:
        uid = self.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
        entry = self.live.of(KEY, uid)
        entry.decisions[role] = Decision(current, to, "QueueAboveTarget", "QueueDepth", 9.0, 4.0)

    def snapshot(self) -> dict[Any, Any]:
        """Return the cluster without the uids and versions, which differ from run to run."""
        out = {}
        for key, obj in self.kube.objects.items():
            if key[0] == "ControllerRevision":
                continue  # an edit before the first reconcile leaves no revision
            annotations = {k: v for k, v in (obj["metadata"].get("annotations") or {}).items() if k != APPLIED_HASH}
            meta = (obj["metadata"].get("labels"), annotations)
            spec = obj.get("spec")
            out[key] = (meta, spec, obj.get("data"), obj.get("rules"))
        return out
