"""A cluster in memory whose Deployments get pods, and whose router reports the pairs that serve."""

from __future__ import annotations

import copy
import datetime
from typing import Any

from tests.operator.controller.world import KEY, World

from disagg_operator.kube.resources import labels_of
from disagg_operator.rollout import looking, revisions
from disagg_operator.rollout.canary_reports import noted
from disagg_operator.status.kv_links import RouterView, WorkerLink
from disagg_operator.vocabulary import Obj
from disagg_wire.canary import CanaryWord, name_of, read_word
from disagg_wire.labels import LABEL_CANARY

ROLES = ("prefill", "decode")
A_MODEL = {"uri": "file:///models/other"}


class Rolling(World):
    """A deployment with pods. Pods of a revision in `broken` never become ready."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**{"prefill": {"replicas": 2}, "decode": {"replicas": 2}, **spec})
        self.broken: set[str] = set()
        self.made = 0
        self.least_pairs = 99
        # What the router has counted of each revision that was tried, as [minute, counts].
        self.counted: dict[str, list[list[int]]] = {}

    def words(self) -> dict[str, CanaryWord]:
        """Return what the routers are told of the revisions, by pool."""
        labels = {role: labels_of(self.kube.find("Service", f"chat-{role}")).get(LABEL_CANARY, "") for role in ROLES}
        return {role: word for role, text in labels.items() if (word := read_word(text)) is not None}

    def serve(self, new: tuple[int, int], old: tuple[int, int]) -> None:
        """Let (requests, met) of both revisions begin and end in this minute, as far as one is
        tried.
        """
        if name := name_of(self.words()):
            minute = int(datetime.datetime.fromisoformat(self.now).timestamp() // 60)
            self.counted.setdefault(name, []).append([minute, *new, *old])
        self._report()

    def workloads(self) -> dict[tuple[str, str], Obj]:
        return looking.workloads(self.kube.objects.values())

    def replicas_of(self, role: str) -> dict[str, int]:
        """Return the replicas of each Deployment of a role, by name."""
        return {
            o["metadata"]["name"]: o["spec"]["replicas"]
            for key, o in sorted(self.workloads().items())
            if key[0] == role
        }

    def pods(self, key: tuple[str, str]) -> list[Obj]:
        return looking.pods_of([o for (kind, _, _), o in self.kube.objects.items() if kind == "Pod"], key)

    def revisions(self) -> list[revisions.KnownRevision]:
        return revisions.known_revisions(self.kube.objects.values())

    def last_first(self, pods: list[Obj]) -> list[Obj]:
        """Return pods in an order in which the last ones are deleted first."""
        return pods

    def kubelets(self) -> None:
        """Do what controllers, scheduler, kubelets and router do until nothing changes."""
        for key, deployment in self.workloads().items():
            here = self.pods(key)
            for pod in self.last_first(here)[deployment["spec"]["replicas"] :]:
                self.kube.remove("Pod", pod["metadata"]["name"])
            for _ in range(deployment["spec"]["replicas"] - len(here)):
                self._make(key, deployment)
        for kind, _, name in list(self.kube.objects):
            if kind == "Pod" and not any(self._is_of(name, key) for key in self.workloads()):
                self.kube.remove("Pod", name)
        for deployment in [*self.workloads().values(), self.kube.find("Deployment", "chat-router")]:
            stored, count = copy.deepcopy(deployment), deployment["spec"]["replicas"]
            revision = labels_of(deployment).get("disagg.dev/revision")
            ready = 0 if revision in self.broken else count
            stored["status"] = {
                "observedGeneration": stored["metadata"]["generation"],
                "replicas": count,
                "readyReplicas": ready,
                "updatedReplicas": count,
            }
            self.kube.objects["Deployment", "default", stored["metadata"]["name"]] = stored
        self._report()

    def _is_of(self, name: str, key: tuple[str, str]) -> bool:
        labels = labels_of(self.kube.find("Pod", name))
        return (labels["disagg.dev/pool"], labels["disagg.dev/revision"]) == key

    def _make(self, key: tuple[str, str], deployment: Obj) -> None:
        self.made += 1
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        ready = "False" if key[1] in self.broken else "True"
        self.kube.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"p{self.made}", "namespace": "default", "labels": labels},
                "spec": {"nodeName": "n"},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }
        )

    def _report(self) -> None:
        """Let the router report: workers of one revision of both roles have moved KV."""
        names = {key: [p["metadata"]["name"] for p in self.pods(key)] for key in self.workloads()}
        ready = {key: pods for key, pods in names.items() if key[1] not in self.broken}
        pairs = [
            (p, d)
            for revision in self.revisions()
            for p in ready.get(("prefill", revision.prefill), [])
            for d in ready.get(("decode", revision.decode), [])
        ]
        links = [WorkerLink(pod, key[0], "tcp", "eth0", compat=self.compat(key)) for key in ready for pod in ready[key]]
        uid = self.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
        name = name_of(self.words())
        rows = self.counted.get(name, [])
        through = max((row[0] for row in rows), default=0)
        told = {"revision": name, "through": through, "minutes": rows} if name else None
        live = self.live.of(KEY, uid)
        live.canary = noted(live.canary, [{"incarnation": "a-router", "canary": told}])
        live.view = RouterView(len(pairs), len(pairs), tuple(links), moved=tuple(sorted(pairs)))
        if self.revisions():
            self.least_pairs = min(self.least_pairs, len(pairs))

    def compat(self, key: tuple[str, str]) -> str:
        """Return the compatibility of workers: that of the first revision that has them."""
        return next((r.name for r in self.revisions() if r.of(key[0]) == key[1]), key[1])

    async def roll(self, rounds: int = 60) -> None:
        """Reconcile until nothing is written any more."""
        quiet = 0
        for _ in range(rounds):
            before = len(self.kube.log)
            await self.run()
            self.kubelets()
            quiet = quiet + 1 if len(self.kube.log) == before else 0
            if quiet == 2:
                return
        raise AssertionError(f"no end: {self.replicas_of('prefill')}, {self.replicas_of('decode')}")

    def later(self, seconds: int) -> None:
        at = datetime.datetime.fromisoformat(self.now) + datetime.timedelta(seconds=seconds)
        self.now = at.isoformat().replace("+00:00", "Z")
        self.clock_s += seconds

    def revision_of(self, role: str) -> str:
        """Return the revision of a role that the spec renders."""
        target = self.status()["revision"]["update"].split("-")
        return str(target[0] if role == "prefill" else target[-1])


async def settled(**spec: Any) -> Rolling:
    """Return a world in which the resource is deployed, and nothing is left to do."""
    world = Rolling(**spec)
    await world.roll()
    return world
