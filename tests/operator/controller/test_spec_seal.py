"""Whoever may write the ConfigMaps of a namespace can't make up a spec that has been accepted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.operator.controller.world import World

from disagg_operator.autoscaling.records.state_store import encode
from disagg_operator.controller.accepted_specs import SpecsInConfigMaps
from disagg_operator.controller.spec_seal import SpecSeal
from disagg_operator.kube.errors import Conflict, Forbidden, KubeError, Retry
from disagg_operator.kube.resources import Resource
from disagg_operator.vocabulary import Obj

_HOSTILE = {"podTemplate": {"spec": {"hostNetwork": True}}}


class Secrets:
    """The Secrets of the operator's namespace."""

    def __init__(self) -> None:
        self.stored: Obj | None = None
        self.calls: list[str] = []
        self.refuses: KubeError | None = None
        self.faster: Obj | None = None

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        assert (resource.kind, namespace, name) == ("Secret", "sys", "op-seal")
        self.calls.append("get")
        if self.refuses is not None:
            raise self.refuses
        return self.stored

    async def create(self, obj: Obj) -> Obj:
        self.calls.append("create")
        if self.faster is not None:
            self.stored = self.faster
            raise Conflict("there is one")
        self.stored = obj
        return obj


class Sealed(World):
    """A world in which every process seals with the key of the same namespace."""

    def __init__(self, **spec: Any) -> None:
        self.secrets = Secrets()
        super().__init__(**spec)

    def seal(self) -> SpecSeal:
        return SpecSeal(self.secrets, "sys", "op")

    def host_network(self) -> bool:
        pods = (o for (kind, _, _), o in self.kube.objects.items() if kind == "Deployment")
        return any(pod["spec"]["template"]["spec"].get("hostNetwork") for pod in pods)

    def forge(self, **data: str) -> None:
        """Write the spec as it is declared into the ConfigMap of the accepted one."""
        obj = copy.deepcopy(self.kube.find("ConfigMap", "chat-accepted-spec"))
        obj["data"] |= {"spec": encode(self.kube.find("DisaggDeployment", "chat")["spec"]), **data}
        self.kube.put(obj)


@pytest.mark.parametrize("data", [{}, {"seal": ""}, {"seal": "\u0142"}])
async def test_a_spec_that_somebody_else_wrote_was_not_accepted(data: dict[str, str]) -> None:
    world = Sealed()
    await world.settle()
    world.edit(decode=_HOSTILE)
    world.forge(**data)
    world.restart()
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "NotPermitted")
    assert not world.host_network()


async def test_what_was_accepted_is_known_to_the_next_operator() -> None:
    world = Sealed()
    await world.settle()
    kept = copy.deepcopy(world.kube.find("ConfigMap", "chat-accepted-spec")["data"])
    world.edit(decode=_HOSTILE)
    world.restart()
    await world.settle()
    assert world.condition("Accepted")["status"] == "False"
    assert not world.host_network()
    assert world.kube.find("ConfigMap", "chat-accepted-spec")["data"] == kept
    assert world.secrets.calls.count("create") == 1


async def test_a_seal_that_is_taken_away_is_set_again() -> None:
    world = Sealed()
    await world.settle()
    specs: Any = world.reconciler._judge._specs
    assert isinstance(specs, SpecsInConfigMaps)
    assert not await specs.is_lost(("default", "chat"))
    obj = copy.deepcopy(world.kube.find("ConfigMap", "chat-accepted-spec"))
    del obj["data"]["seal"]
    world.kube.put(obj)
    assert await specs.is_lost(("default", "chat"))
    await world.run()
    assert world.kube.find("ConfigMap", "chat-accepted-spec")["data"]["seal"]


async def test_the_key_is_read_once_and_made_once() -> None:
    secrets = Secrets()
    one, other = (SpecSeal(secrets, "sys", "op") for _ in range(2))
    seal = await one.of("uid", "spec", "1")
    assert seal == await one.of("uid", "spec", "1") == await other.of("uid", "spec", "1")
    assert secrets.calls == ["get", "create", "get"]
    assert len({seal, await one.of("other", "spec", "1"), await one.of("uid", "spec1", ""), await one.of("uid")}) == 4


async def test_the_key_of_a_faster_operator_counts() -> None:
    first, second = Secrets(), Secrets()
    seal = await SpecSeal(first, "sys", "op").of("a")
    second.faster = first.stored
    assert await SpecSeal(second, "sys", "op").of("a") == seal


async def test_without_a_right_or_a_namespace_nothing_is_sealed_and_a_failure_is_one() -> None:
    secrets = Secrets()
    assert await SpecSeal(secrets, "", "op").of("a") is None
    assert secrets.calls == []
    secrets.refuses = Retry("away")
    seal = SpecSeal(secrets, "sys", "op")
    with pytest.raises(Retry):
        await seal.of("a")
    secrets.refuses = Forbidden("no")
    assert await seal.of("a") is None
    secrets.refuses = None
    assert await seal.of("a") is None
    assert secrets.calls == ["get", "get"]
