"""While workers of two revisions run, the NetworkPolicies allow what either of them needs."""

from __future__ import annotations

from tests.operator.controller.rolling import A_MODEL, Rolling, settled

from disagg_operator.vocabulary import Obj

WEB = {"model": {"uri": "hf://org/model"}}


def egress(world: Rolling) -> list[Obj]:
    """Return the rules by which workers reach others."""
    found: list[Obj] = world.kube.find("NetworkPolicy", "chat-workers")["spec"]["egress"]
    return found


def ports(world: Rolling) -> set[int]:
    """Return the ports on which workers reach others than themselves."""
    rules = (rule for rule in egress(world) if not any("podSelector" in peer for peer in rule.get("to", ())))
    return {port["port"] for rule in rules for port in rule["ports"]}


async def test_old_workers_keep_their_rules_until_the_last_one_is_gone() -> None:
    world = await settled(**WEB)
    before = egress(world)
    assert 443 in ports(world)
    world.edit(model=A_MODEL)
    await world.run()
    assert len(world.replicas_of("prefill")) == 2
    assert egress(world) == before
    await world.roll()
    assert len(world.replicas_of("prefill")) == 1
    assert 443 not in ports(world)


async def test_new_workers_have_their_rules_from_the_start_and_nothing_stays_after_a_revert() -> None:
    world = await settled(model=A_MODEL)
    before = egress(world)
    world.edit(**WEB)
    await world.run()
    assert 443 in ports(world)
    world.edit(model=A_MODEL)
    await world.run()
    assert 443 in ports(world)
    await world.roll()
    assert egress(world) == before


async def test_workers_that_still_end_count_and_a_revision_that_cannot_be_read_does_not() -> None:
    world = await settled(**WEB)
    world.edit(model=A_MODEL)
    old = set(world.kube.names("Pod"))
    kept = [world.kube.find("Pod", name) for name in old]
    await world.roll()
    assert 443 not in ports(world)
    for pod in kept:
        world.kube.put({**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
    await world.run()
    assert 443 in ports(world)
    (first, _) = sorted(
        (o for (kind, _, _), o in world.kube.objects.items() if kind == "ControllerRevision"),
        key=lambda o: int(o["revision"]),
    )
    first["data"]["spec"]["engine"] = {"type": 7}
    await world.run()
    assert 443 not in ports(world)
