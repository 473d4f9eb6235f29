"""Decides which spec of a resource is served, and what status says about the one that is written.

What breaks a rule is refused. But a rule may be newer than the resource, and an object that it
refers to may vanish: then a field that has not been written since the resource was last accepted is
only warned of. While a spec is refused, the last accepted one is served on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from disagg_operator.api.namespace_policy import Policy
from disagg_operator.api.violation import Violation, value_at
from disagg_operator.controller.acceptance import AcceptedDeployment, Assessment, Refused, assess
from disagg_operator.controller.accepted_specs import AcceptedSpecs, config_map_name
from disagg_operator.controller.children import ChildKey, Children
from disagg_operator.controller.reference_watch import MULTUS_ABSENT, ReferenceWatch
from disagg_operator.kube.client import Kube
from disagg_operator.kube.resources import CONFIG_MAP, name_of
from disagg_operator.vocabulary import Key, Obj

_MOST_TOLD = 5
MULTUS_RETRY_S = 8.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The decision about a resource."""

    plan: AcceptedDeployment
    """What is served: the spec as it is written, or the one that was accepted last."""
    spec: Obj
    """The spec that is served."""
    refusal: tuple[str, str] | None = None
    """The reason and the message if the spec as it is written is refused."""
    warnings: tuple[Violation, ...] = ()
    """What is wrong with the spec that is served."""
    retry_s: float | None = None
    """When to judge again what is refused."""


class Judge:
    """Judges resources. Its methods raise KubeError, and Refused if nothing can be served."""

    def __init__(self, specs: AcceptedSpecs, references: ReferenceWatch, policy: Policy) -> None:
        self._specs = specs
        self._references = references
        self._policy = policy

    async def judge(self, resource: Obj, children: Children) -> Judgement:
        """Judge the spec of a resource as it is written."""
        try:
            seen = await self._seen(resource)
        except Refused as error:
            return await self.fall_back(resource, children, error)
        if not seen.violations:
            return Judgement(seen.plan, resource["spec"], warnings=seen.questions)
        last = await self._specs.last(resource, children)
        fresh = (
            seen.violations if last is None else written(seen.violations, resource, await self._known(resource, last))
        )
        if fresh:
            return await self.fall_back(resource, children, Refused(fresh[0].reason, told(fresh), _retry_s(fresh)))
        return Judgement(seen.plan, resource["spec"], warnings=(*seen.violations, *seen.questions))

    async def fall_back(self, resource: Obj, children: Children, refused: Refused) -> Judgement:
        """Return the judgement that serves the last accepted spec. Raises `refused` without one.

        That may be the spec as it is written: what was accepted may be forbidden later.
        """
        last = await self._specs.last(resource, children)
        if last is None:
            raise refused
        try:
            seen = await self._seen({**resource, "spec": last}, further=True)
        except Refused:
            raise refused from None
        warnings = (*seen.violations, *seen.questions)
        return Judgement(seen.plan, last, (refused.reason, str(refused)), warnings, refused.retry_s)

    async def served(self, resource: Obj, judgement: Judgement, *, first: bool = False) -> Obj:
        """Return a resource as it would be stored if what is served had been its last edit.

        None has been accepted before if nothing exists yet (`first`). Whether a rollout has failed
        depends on its generation, and a refused edit changes nothing.
        """
        if first:
            self._specs.begin(resource)
        generation = await self._specs.generation(resource, judgement.spec)
        return {**resource, "metadata": {**resource["metadata"], "generation": generation}, "spec": judgement.spec}

    async def accepted(self, resource: Obj, judgement: Judgement, kube: Kube) -> dict[ChildKey, Refused]:
        """Remember that the spec as it is written has been accepted; `kube` is what writes it.

        Returns what may not be written for that.
        """
        try:
            if judgement.refusal is None:
                await self._specs.keep(resource, resource["spec"], kube)
            else:
                await self._specs.restore(resource, kube)
        except Refused as error:
            return {(CONFIG_MAP.kind, config_map_name(name_of(resource))): error}
        return {}

    def forget(self, key: Key) -> None:
        """Forget a resource that is gone."""
        self._references.forget(key)
        self._specs.forget(key)

    async def _known(self, resource: Obj, last: Obj) -> tuple[Obj, frozenset[Violation]]:
        before = {**resource, "spec": last}
        try:
            return before, frozenset((await self._seen(before, further=True)).violations)
        except Refused:
            return before, frozenset()

    async def _seen(self, resource: Obj, *, further: bool = False) -> Assessment:
        namespace = str(resource["metadata"]["namespace"])
        found = assess(resource, self._policy.of(namespace))
        gone = await self._references.missing((namespace, name_of(resource)), found.plan.resource, further=further)
        return Assessment(found.plan, (*found.violations, *gone), found.questions)


def _retry_s(violations: Iterable[Violation]) -> float | None:
    """Return when to judge again: an API that is missing may have been installed by then."""
    return MULTUS_RETRY_S if any(v.reason == MULTUS_ABSENT for v in violations) else None


def written(
    violations: Iterable[Violation], resource: Obj, before: tuple[Obj, frozenset[Violation]]
) -> list[Violation]:
    """Return the violations that were written since a resource was last accepted.

    `before` is the resource with the spec of then, and what is wrong with that by the rules of now.
    """
    last, known = before
    return [v for v in violations if v not in known or value_at(resource, v.path) != value_at(last, v.path)]


def told(violations: Sequence[Violation]) -> str:
    """Return what is wrong in one message."""
    more = len(violations) - _MOST_TOLD
    return "; ".join(map(str, violations[:_MOST_TOLD])) + (f"; and {more} more" if more > 0 else "")
