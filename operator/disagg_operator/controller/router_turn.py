"""PURE: What becomes of the routers' Deployment in one step of a rollout: the routers follow last.

They know one name from the start, so that they can hold requests for it while no worker is there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired import names
from disagg_operator.kube.resources import DEPLOYMENT, name_of
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.vocabulary import Obj
from disagg_wire.environment import RouterVariable


@dataclass(frozen=True, slots=True)
class RouterTurn:
    """The routers' Deployment: the one to apply, or the live one if it is left as it is."""

    applied: Obj | None = None
    left: Obj | None = None


def turn(
    dd: DisaggDeployment,
    rendered: Sequence[Obj],
    live: Sequence[Obj],
    back: KnownRevision | None,
    *,
    old_workers: bool,
) -> RouterTurn:
    """Return what becomes of the routers, which are left as they are while old workers may serve.

    `back` is the revision to which a rollout has gone back. Routers that know another name than its
    own, because the model was renamed while there were no workers, get that name again.
    """
    wanted = next((o for o in rendered if is_router(o, dd)), None)
    there = next((o for o in live if is_router(o, dd)), None)
    if there is None or not (back is not None or old_workers):
        return RouterTurn(applied=wanted)
    if back is None or wanted is None or _name_in(there) in ("", back.model_name):
        return RouterTurn(left=there)
    return RouterTurn(applied=_named(wanted, back))


def is_router(obj: Obj, dd: DisaggDeployment) -> bool:
    """Return whether an object is the routers' Deployment."""
    return obj.get("kind") == DEPLOYMENT.kind and name_of(obj) == names.router_name(dd.metadata.name)


def _env_of(deployment: Obj) -> list[dict[str, Any]]:
    pod = deployment["spec"]["template"]["spec"]
    return next((c.get("env") or [] for c in pod.get("containers") or [] if c.get("name") == "main"), [])


def _name_in(deployment: Obj) -> str:
    """Return the name of the model that routers know from the start."""
    found = (e for e in _env_of(deployment) if e.get("name") == RouterVariable.MODEL_NAME)
    return str(next(found, {}).get("value") or "")


def _named(deployment: Obj, revision: KnownRevision) -> Obj:
    """Return routers that know the names of a revision from the start."""
    out = copy.deepcopy(deployment)
    adapters = [str(a.get("name")) for a in (revision.spec.get("model") or {}).get("adapters") or []]
    values: Mapping[str, str] = {
        RouterVariable.MODEL_NAME: revision.model_name,
        RouterVariable.LORA_ADAPTERS: json.dumps(adapters),
    }
    for entry in _env_of(out):
        if entry["name"] in values:
            entry["value"] = values[entry["name"]]
    return out
