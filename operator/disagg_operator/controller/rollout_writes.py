"""Writes what a step of a rollout asks for beyond the rendered objects.

The order of the writes does not matter for what serves: each of them is safe on its own.
"""

from __future__ import annotations

import logging

from disagg_operator.controller import drift
from disagg_operator.controller.children import ChildKey, Children, key_of
from disagg_operator.controller.rollout_step import RolloutStep
from disagg_operator.kube.client import Kube
from disagg_operator.kube.resources import CONTROLLER_REVISION, DEPLOYMENT, annotations_of, name_of
from disagg_operator.rollout import looking, revisions
from disagg_operator.rollout.canary_record import CANARY_ANNOTATION
from disagg_operator.vocabulary import Key, Obj

log = logging.getLogger(__name__)


async def record(
    kube: Kube, key: Key, step: RolloutStep, children: Children, blocked: frozenset[ChildKey] = frozenset()
) -> None:
    """Write the ControllerRevision of the revision that is rolled out, unless it is `blocked`.

    Raises KubeError.
    """
    if step.record is None or key_of(step.record) in blocked:
        return
    live = children.get(CONTROLLER_REVISION.kind, name_of(step.record))
    if live is None or not drift.up_to_date(step.record, live):
        stored = await kube.apply(drift.stamped(step.record))
        children.objects[CONTROLLER_REVISION.kind, name_of(step.record)] = stored
        log.info("%s/%s: revision %s", *key, step.revision)


async def resize(kube: Kube, key: Key, deployment: Obj, replicas: int, children: Children) -> None:
    """Change the number of replicas of a Deployment that is not rendered. Raises KubeError."""
    patch = {"spec": {"replicas": replicas}}
    name = name_of(deployment)
    children.objects[DEPLOYMENT.kind, name] = await kube.merge(DEPLOYMENT, key[0], name, patch)
    log.info("%s/%s: %s has %d replicas", *key, name, replicas)


async def mark(kube: Kube, key: Key, step: RolloutStep, children: Children, generation: int) -> bool:
    """Write down what has served, what has failed, and what is known of a canary. Raises KubeError.

    Returns whether the next run decides otherwise.
    """
    # That a canary has begun is known before its workers count as ones that have served.
    again = await _mark_revision(kube, key, step, generation)
    live = looking.workloads(children.objects.values())
    for workload, value in (step.marks or {}).items():
        found = live.get(workload)
        if found is not None and looking.SERVED_ANNOTATION not in annotations_of(found):
            patch = {"metadata": {"annotations": {looking.SERVED_ANNOTATION: value}}}
            await kube.merge(DEPLOYMENT, key[0], name_of(found), patch)
    return again


async def _mark_revision(kube: Kube, key: Key, step: RolloutStep, generation: int) -> bool:
    where, annotations = step.failed, {}
    if step.canary is not None:
        where, record = step.canary
        annotations[CANARY_ANNOTATION] = record.text()
        log.info("%s/%s: canary of revision %s: %s", *key, name_of(where), record.text())
    if step.failed is not None:
        annotations[revisions.FAILED_ANNOTATION] = str(generation)
        log.warning("%s/%s: revision %s is given up", *key, step.revision)
    if where is None:
        return False
    await kube.merge(CONTROLLER_REVISION, key[0], name_of(where), {"metadata": {"annotations": annotations}})
    return True
