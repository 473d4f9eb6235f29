"""PURE: What a deployment is rendered with apart from its spec, and how that is kept.

The pins of a deployment are its default images and the version of its renderer. They are recorded
when it is first accepted, in an annotation of its DisaggPools, so that an operator with other
images or a newer renderer restarts nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired import renderer
from disagg_operator.desired.facts import Images
from disagg_operator.desired.pod_parts import ADAPTER
from disagg_operator.desired.pod_templates import router_template, worker_template
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_REVISION
from disagg_wire.roles import ROLES

RUNTIME_ANNOTATION = "disagg.dev/runtime"
_MARK = "the-default-image"


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of one deployment."""

    images: Images
    """The images and the renderer."""
    asked: str = ""
    """The last request to move the pins that has been carried out."""
    moving: bool = False
    """Whether the operator has moved the pins by itself, and the pods are not there yet."""


def to_text(pins: Pins) -> str:
    """Return the pins as the annotation holds them."""
    images = pins.images
    content: dict[str, Any] = {
        "renderer": images.renderer,
        "worker": images.worker,
        "router": images.router,
        "adapter": images.adapter,
        "engines": dict(images.engines),
    }
    content |= {"asked": pins.asked} if pins.asked else {}
    content |= {"moving": True} if pins.moving else {}
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def from_text(text: str, current: Images) -> Pins | None:
    """Return the pins that an annotation holds, or None if somebody else has written into it.

    A renderer from the future, of an operator that was replaced by this older one, counts as the
    current one.
    """
    try:
        raw = json.loads(text)
        images = replace(
            current,
            worker=_text(raw["worker"]),
            router=_text(raw["router"]),
            adapter=_text(raw["adapter"]),
            engines={_text(k): _text(v) for k, v in raw["engines"].items()},
            renderer=min(max(int(raw["renderer"]), renderer.FIRST), renderer.CURRENT),
        )
        return Pins(images, str(raw.get("asked", "")), bool(raw.get("moving", False)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def current_for(dd: DisaggDeployment, images: Images) -> Images:
    """Return the images of this release for a deployment, with that of its engine."""
    known = dd.spec.engine.known
    return images if known.image is None else replace(images, engines={dd.spec.engine.type: known.image})


def completed(pinned: Images, current: Images) -> Images:
    """Return pins with the images that they lack, because the deployment has another engine now."""
    return replace(pinned, engines={**current.engines, **pinned.engines})


def revision_under(dd: DisaggDeployment, images: Images) -> str:
    """Return the revision of a deployment's pods as status shows it, if it has these pins."""
    return "-".join(dict.fromkeys(worker_template(dd, role, images)[1] for role in ROLES))


def same_pods(dd: DisaggDeployment, one: Images, other: Images) -> bool:
    """Return whether no pod differs between two pins."""
    workers = all(worker_template(dd, role, one) == worker_template(dd, role, other) for role in ROLES)
    return workers and router_template(dd, one) == router_template(dd, other)


def found_in(dd: DisaggDeployment, workers: dict[str, list[Obj]], routers: list[Obj], current: Images) -> Images | None:
    """Return the pins that explain the Deployments of a deployment that has none recorded.

    It is one of a release without pins, or the annotation was removed. `workers` holds the
    Deployments of each pool and their revisions in a label. Without any worker there is nothing to
    be explained. Without an explanation, because the spec was changed in the meantime, the renderer
    is that of the release without pins.
    """
    templates = {role: [d["spec"]["template"] for d in found] for role, found in workers.items() if found}
    if not templates:
        return None
    live = _live_images(dd, templates, [d["spec"]["template"] for d in routers], current)
    for version in range(renderer.CURRENT, renderer.FIRST, -1):
        guess = replace(live, renderer=version)
        revisions = {role: worker_template(dd, role, guess)[1] for role in templates}
        if all(any(_revision(t) == revisions[role] for t in found) for role, found in templates.items()):
            return guess
    return replace(live, renderer=renderer.FIRST)


def _revision(template: Obj) -> str:
    return str((template.get("metadata", {}).get("labels") or {}).get(LABEL_REVISION, ""))


def _live_images(dd: DisaggDeployment, workers: dict[str, list[Obj]], routers: list[Obj], current: Images) -> Images:
    """Return the images that run in place of defaults."""
    engine = dd.spec.engine.type
    out = current
    for role, templates in workers.items():

        def worker(images: Images, role: str = role) -> Obj:
            return worker_template(dd, role, images)[0]

        for template in templates[-1:]:
            if image := _default_in(template, "main", worker, replace(current, worker=_MARK)):
                out = replace(out, worker=image)
            if image := _default_in(template, ADAPTER, worker, replace(current, adapter=_MARK)):
                out = replace(out, adapter=image)
            if image := _default_in(template, "main", worker, replace(current, engines={engine: _MARK})):
                out = replace(out, engines={engine: image})
    for template in routers[-1:]:
        if image := _default_in(template, "main", lambda i: router_template(dd, i), replace(current, router=_MARK)):
            out = replace(out, router=image)
    return out


def _default_in(template: Obj, container: str, render: Callable[[Images], Obj], marked: Images) -> str | None:
    """Return the image of a container that runs, if a default image would be rendered there."""
    if _image_of(render(marked), container) != _MARK:
        return None
    return _image_of(template, container)


def _image_of(template: Obj, container: str) -> str | None:
    found = [c for c in template.get("spec", {}).get("containers") or [] if c.get("name") == container]
    return str(found[0]["image"]) if found and found[0].get("image") else None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value
