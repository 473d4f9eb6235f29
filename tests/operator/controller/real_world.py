"""An operator's reconciler over a real API server, in the process of the test."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from tests.integration.apiserver import ApiServer

from disagg_operator.api.namespace_policy import Policy
from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.signals.direct import Target
from disagg_operator.controller import full_list
from disagg_operator.controller.accepted_specs import SpecsInConfigMaps
from disagg_operator.controller.drainer import Drainer
from disagg_operator.controller.judge import Judge
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.reconciler import Reconciler
from disagg_operator.controller.reference_watch import ReferenceWatch
from disagg_operator.controller.runtime_updates import RuntimeUpdates
from disagg_operator.controller.views import Views
from disagg_operator.desired import Images
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.credentials import load
from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_DEPLOYMENT, DISAGG_POOL, Resource
from disagg_operator.status.recorder import Recorder
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_DEPLOYMENT, LABEL_POOL

_NUMBERS = itertools.count()
_MERGE = "application/merge-patch+json"


async def no_answer(target: Target, content: Mapping[str, Any]) -> int | None:
    """Answer like a worker that is not there."""
    return None


class RealWorld:
    """One namespace of a real API server, and a reconciler whose clock stands still.

    It must be created and closed on one event loop.
    """

    def __init__(self, server: ApiServer, policy: Policy | None = None) -> None:
        self.kube = HttpKube(load({"KUBECONFIG": str(server.kubeconfig)}), attempts=6)
        self.namespace = f"refusals-{next(_NUMBERS)}"
        self.woken: list[Key] = []
        self.clock = 0.0
        self.references = ReferenceWatch(self.kube, self.woken.append, lambda: self.clock)
        self.cache = Cache()
        self.views = Views(self.kube, self.cache, lambda: self.clock)
        self.reconciler = Reconciler(
            kube=self.kube,
            live=LiveTable(),
            recorder=Recorder(self.kube, lambda: 0.0, lambda: "2026-01-01T00:00:00Z", lambda: f"id{next(_NUMBERS)}"),
            judge=Judge(SpecsInConfigMaps(self.kube), self.references, policy or Policy()),
            metrics=Metrics(),
            drainer=Drainer(self.kube, no_answer, self.woken.append, lambda: self.clock, lambda: None),
            images=Images(worker="w:1", router="r:1"),
            updates=RuntimeUpdates(0, self.woken.append),
            wall=lambda: "2026-01-01T00:00:00Z",
            new_cluster_key=lambda: "ab" * 32,
            clock=lambda: self.clock,
            views=self.views,
        )

    async def open(self) -> RealWorld:
        await self.send("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        return self

    async def close(self) -> None:
        await self.kube.close()

    async def send(self, verb: str, path: str, body: Obj, content_type: str = "application/json") -> Obj:
        return await self.kube._call(verb, path, body=body, content_type=content_type)

    async def make(self, kind: Resource, name: str, **content: Any) -> Obj:
        """Create an object as a user would."""
        meta = {"name": name, **({"namespace": self.namespace} if kind.namespaced else {})}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, **content}
        return await self.send("POST", kind.path(self.namespace if kind.namespaced else None), body)

    async def create(self, name: str, spec: Obj) -> None:
        await self.make(DISAGG_DEPLOYMENT, name, spec=copy.deepcopy(spec))

    async def edit(self, name: str, patch: Obj) -> None:
        """Send a JSON merge patch of the spec."""
        await self.send("PATCH", DISAGG_DEPLOYMENT.path(self.namespace, name), {"spec": patch}, _MERGE)

    async def replace(self, name: str, parts: dict[str, Any]) -> None:
        """Replace parts of the spec, each as a whole."""
        patch: Any = [{"op": "add", "path": f"/spec/{path}", "value": value} for path, value in parts.items()]
        path = DISAGG_DEPLOYMENT.path(self.namespace, name)
        await self.send("PATCH", path, patch, "application/json-patch+json")

    async def run(self, name: str) -> float | None:
        await full_list.refresh(self.kube, self.cache, [self.namespace])
        return await self.reconciler.run((self.namespace, name))

    async def resource(self, name: str) -> Obj:
        found = await self.kube.get(DISAGG_DEPLOYMENT, self.namespace, name)
        assert found is not None
        return found

    async def condition(self, name: str, kind: str) -> Obj:
        """Return a condition, which must speak of the present generation."""
        found = await self.resource(name)
        condition: Obj = next((c for c in found["status"]["conditions"] if c["type"] == kind), {})
        if condition:
            assert condition["observedGeneration"] == found["metadata"]["generation"]
        return condition

    async def templates(self, name: str) -> dict[str, Obj]:
        """Return the pod templates of the workers, by role."""
        found = await self.kube.list(DEPLOYMENT, self.namespace, f"{LABEL_DEPLOYMENT}={name},{LABEL_POOL}")
        return {o["metadata"]["labels"][LABEL_POOL]: o["spec"]["template"] for o in found}

    async def made(self) -> list[str]:
        """Return the workloads and pools that exist."""
        found = [o for kind in (DEPLOYMENT, DISAGG_POOL) for o in await self.kube.list(kind, self.namespace)]
        return sorted(f"{o['kind']}/{o['metadata']['name']}" for o in found)
