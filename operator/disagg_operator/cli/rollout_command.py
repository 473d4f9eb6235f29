"""The command `disagg rollout`: status, history, undo, pause, resume and restart of a deployment.

It edits the declared spec, so that what rolls out stays what is declared.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from disagg_operator.kube import credentials
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import CONTROLLER_REVISION, DISAGG_DEPLOYMENT, annotations_of
from disagg_operator.rollout import revisions
from disagg_operator.rollout.canary_record import PROMOTE_ANNOTATION
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.rollout.telling import CANARY_INCONCLUSIVE
from disagg_operator.vocabulary import MOST_OF_A_REQUEST, UPDATE_RUNTIME, Obj
from disagg_wire.labels import LABEL_DEPLOYMENT
from disagg_wire.roles import ROLES

# The field manager of the edits that this command makes.
MANAGER = "disagg-rollout"
RESTARTED_ANNOTATION = "disagg.dev/restarted-at"
_LOOK_EVERY_S = 1.0
_ACTIONS = {
    "status": "wait until the rollout has ended, and say how it goes",
    "history": "list the revisions",
    "undo": "declare an earlier revision again",
    "pause": "take no further step",
    "resume": "go on, also with a canary that waits",
    "restart": "replace all workers by new ones of the same spec",
}


class RolloutError(Exception):
    """Raised when an action is not possible; the message says why."""


ERRORS = (RolloutError, credentials.NoCredentials, KubeError, OSError, ValueError)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text)
        action.add_argument("name", help="name of the DisaggDeployment")
        action.add_argument("-n", "--namespace", help="its namespace (default: that of the kubeconfig's context)")
        if name == "status":
            action.add_argument("--no-wait", action="store_true", help="say how it is now, and do not wait")
            action.add_argument("--timeout-s", type=float, default=600.0, help="how long to wait (default 600)")
        if name == "undo":
            action.add_argument(
                "--to-revision", type=int, metavar="NUMBER", help="the revision (default: the one before)"
            )
        if name == "restart":
            action.add_argument(
                "--runtime",
                action="store_true",
                help="do it by moving to the images and the renderer of the operator's release; nothing if it has them",
            )


def run(args: argparse.Namespace) -> int:
    """Carry out an action and return the exit status. Raises one of ERRORS."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    found = credentials.load(os.environ)
    kube = HttpKube(found)
    try:
        rollout = _Rollout(kube, args.namespace or found.namespace, args.name)
        match args.action:
            case "status":
                return await rollout.status(0.0 if args.no_wait else args.timeout_s)
            case "history":
                return await rollout.history()
            case "undo":
                return await rollout.undo(args.to_revision)
            case "restart":
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                return await (rollout.update_runtime(now) if args.runtime else rollout.restart(now))
            case _:
                return await rollout.pause(paused=args.action == "pause")
    finally:
        await kube.close()


class _Rollout:
    """The rollout of one deployment."""

    def __init__(self, kube: HttpKube, namespace: str, name: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name

    async def _resource(self) -> Obj:
        found = await self._kube.get(DISAGG_DEPLOYMENT, self._namespace, self._name)
        if found is None:
            raise RolloutError(f"there is no DisaggDeployment {self._namespace}/{self._name}")
        return found

    async def _revisions(self) -> list[KnownRevision]:
        labels = f"{LABEL_DEPLOYMENT}={self._name}"
        return revisions.known_revisions(await self._kube.list(CONTROLLER_REVISION, self._namespace, labels))

    async def _edit(self, patch: Obj, said: str) -> int:
        await self._kube.merge(DISAGG_DEPLOYMENT, self._namespace, self._name, patch, manager=MANAGER)
        print(f"{self._name}: {said}")
        return 0

    async def status(self, timeout_s: float) -> int:
        """Print each new state of the rollout until it has ended. Returns 0 if it is complete."""
        ends_at, last = time.monotonic() + timeout_s, ""
        while True:
            ended, words = state_of(await self._resource())
            if words != last:
                print(words, flush=True)
                last = words
            if ended is not None:
                return 0 if ended else 1
            if time.monotonic() >= ends_at:
                if timeout_s:
                    print(f"{self._name}: not complete after {timeout_s:g} s", file=sys.stderr)
                return 1
            await asyncio.sleep(_LOOK_EVERY_S)

    async def history(self) -> int:
        resource, known = await self._resource(), await self._revisions()
        Console(width=None if sys.stdout.isatty() else 160).print(table(resource, known))
        return 0

    async def undo(self, number: int | None) -> int:
        resource, known = await self._resource(), await self._revisions()
        to = chosen(known, number)
        patch = revisions.undo_patch(resource["spec"], to.spec)
        if not patch:
            raise RolloutError(f"revision {to.number} is what is declared already")
        return await self._edit(patch, f"revision {to.number} ({to.name}) is declared again")

    async def pause(self, *, paused: bool) -> int:
        resource = await self._resource()
        was = bool((resource["spec"].get("rollout") or {}).get("paused"))
        if not was and not paused and (revision := inconclusive(resource)):
            patch = {"metadata": {"annotations": {PROMOTE_ANNOTATION: revision}}}
            await self._kube.merge(DISAGG_DEPLOYMENT, self._namespace, self._name, patch, manager=MANAGER)
            print(f"{self._name}: the canary {revision} is promoted")
            return 0
        if was == paused:
            raise RolloutError("is paused already" if paused else "is not paused")
        return await self._edit({"spec": {"rollout": {"paused": paused}}}, "paused" if paused else "resumed")

    async def restart(self, now: str) -> int:
        await self._resource()
        again = {"podTemplate": {"metadata": {"annotations": {RESTARTED_ANNOTATION: now}}}}
        return await self._edit({"spec": dict.fromkeys(ROLES, again)}, "restarted")

    async def update_runtime(self, now: str) -> int:
        update = runtime_update_of(await self._resource())
        said = "the operator's runtime is asked for" + (f": {update}" if update else "; it has no other one, it says")
        return await self._edit({"metadata": {"annotations": {UPDATE_RUNTIME: now}}}, said)


def runtime_update_of(resource: Obj) -> str:
    """Return what the operator has said of another runtime, or "" if there is none."""
    found = _conditions(resource).get("RuntimeUpToDate", {})
    return str(found.get("message", "")) if found.get("status") == "False" else ""


def _conditions(resource: Obj) -> dict[str, Obj]:
    return {c["type"]: c for c in (resource.get("status") or {}).get("conditions") or []}


def state_of(resource: Obj) -> tuple[bool | None, str]:
    """Return whether a rollout has ended well (None: it goes on), and its state in words."""
    status, conditions = resource.get("status") or {}, _conditions(resource)
    if int(status.get("observedGeneration") or 0) < int(resource["metadata"].get("generation") or 0):
        return None, "waiting for the operator"
    accepted, found = conditions.get("Accepted", {}), conditions.get("Progressing", {})
    if accepted.get("status") == "False":
        return False, f"{accepted.get('reason')}: {accepted.get('message')}"
    asked = annotations_of(resource).get(UPDATE_RUNTIME, "")[:MOST_OF_A_REQUEST]
    if asked not in ("", status.get("runtimeRequest")):
        update = runtime_update_of(resource)
        return None, "waiting for the operator to move the runtime" + (f": {update}" if update else "")
    words = f"{found.get('reason')}: {found.get('message')}"
    if found.get("status") == "False":
        return False, words
    return (True if found.get("reason") == "RolloutComplete" else None), words


def inconclusive(resource: Obj) -> str:
    """Return the revision of a canary that waits for a person; "" if there is none."""
    status = resource.get("status") or {}
    reasons = {c["type"]: c.get("reason") for c in status.get("conditions") or []}
    waits = reasons.get("Progressing") == CANARY_INCONCLUSIVE
    return str((status.get("revision") or {}).get("update") or "") if waits else ""


def chosen(known: list[KnownRevision], number: int | None) -> KnownRevision:
    """Return the revision of a number, or the one before the newest. Raises RolloutError.

    One whose canary has failed, or was left in the middle, is not gone back to unless asked for.
    """
    if number is None:
        if len(known) < 2:
            raise RolloutError("there is no earlier revision")
        return ([r for r in known[:-1] if not r.given_up] or known[:-1])[-1]
    for revision in known:
        if revision.number == number:
            return revision
    numbers = ", ".join(str(revision.number) for revision in known) or "none"
    raise RolloutError(f"there is no revision {number}; there are: {numbers}")


def table(resource: Obj, known: list[KnownRevision]) -> Table:
    """Return the revisions as a table, each with what changed since the one before."""
    out = Table(box=None, header_style="")
    for title in ("REVISION", "PODS", "CREATED", "STATE", "CHANGES"):
        out.add_column(title, overflow="fold")
    status = (resource.get("status") or {}).get("revision") or {}
    before: Mapping[str, Any] | None = None
    for revision in known:
        states = [
            word for word, key in (("current", "current"), ("update", "update")) if status.get(key) == revision.name
        ]
        states += ["failed"] if revision.failed_generation is not None else []
        changed = [] if before is None else revisions.changes(before, revision.spec)
        out.add_row(
            str(revision.number), revision.name, revision.created, ", ".join(dict.fromkeys(states)), ", ".join(changed)
        )
        before = revision.spec
    return out
