"""A bare loop that writes what the operator writes for new resources."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence

from tests.fakes.kube import FakeKube
from tests.operator.controller.world import KEY, World

from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT
from disagg_operator.vocabulary import Obj

# What the API server sets.
_SET = ("uid", "resourceVersion", "generation", "managedFields")


class _Recorded(FakeKube):
    """A cluster in memory that keeps what is written to it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[Obj, bool]] = []

    async def apply(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        if not dry_run:
            self.written.append((obj, False))
        return await super().apply(obj, dry_run=dry_run)

    async def apply_status(self, obj: Obj) -> Obj:
        self.written.append((obj, True))
        return await super().apply_status(obj)


async def writes_of_one() -> list[tuple[Obj, bool]]:
    """Return what the operator writes for one resource, and whether each of it is a status."""
    world, kube = World(), _Recorded()
    kube.objects = world.kube.objects
    world.kube = kube
    world.restart()
    await world.settle()
    return kube.written


def user_resource(namespace: str, name: str) -> Obj:
    """Return a resource as its author writes it."""
    made = json.loads(json.dumps(World().kube.find(DISAGG_DEPLOYMENT.kind, KEY[1])))
    made["metadata"] = {"name": name, "namespace": namespace}
    return dict(made)


def renamed(obj: Obj, namespace: str, name: str, owner: str) -> Obj:
    """Return an object for another resource, owned by the uid `owner`."""
    text = json.dumps({**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k not in _SET}})
    text = re.sub(rf"\b{KEY[1]}\b", name, text)
    text = text.replace(f'"namespace": "{KEY[0]}"', f'"namespace": "{namespace}"')
    return dict(json.loads(re.sub(r'"uid": "[^"]*"', f'"uid": "{owner}"', text)))


async def write(kube: HttpKube, namespace: str, names: Sequence[str], at_once: int) -> int:
    """Create resources and all their objects, so many of the resources at once.

    Returns the number of writes.
    """
    wanted, waiting = await writes_of_one(), list(reversed(names))

    async def worker() -> None:
        while waiting:
            name = waiting.pop()
            made = await kube.apply(user_resource(namespace, name))
            for obj, is_status in wanted:
                copy = renamed(obj, namespace, name, made["metadata"]["uid"])
                await (kube.apply_status(copy) if is_status else kube.apply(copy))

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return (1 + len(wanted)) * len(names)


def names(count: int) -> list[str]:
    """Return the names of so many resources."""
    return [f"m{number:04d}" for number in range(count)]
