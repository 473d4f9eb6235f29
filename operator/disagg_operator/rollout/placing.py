"""PURE: The workload of a revision: its name, its selector, and a workload that only changes size.

The first revision's Deployment has the name of its pool, as in releases that had one Deployment per
pool; later ones have their revision in name and selector. A Deployment without pods takes a new
revision in place.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping

from disagg_operator.kube.resources import name_of
from disagg_operator.rollout.values import WorkersKey
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_REVISION


def placed(rendered: Obj, key: WorkersKey, live: Mapping[WorkersKey, Obj], with_pods: Container[WorkersKey]) -> Obj:
    """Return the Deployment of a revision with its name and selector.

    `rendered` has the name of the pool; `live` has the Deployments that exist.
    """
    # Only name and selector differ; the template, which is large, is shared.
    out = {**rendered, "metadata": {**rendered["metadata"]}, "spec": {**rendered["spec"]}}
    out["spec"]["selector"] = copy.deepcopy(rendered["spec"]["selector"])
    same = live.get(key)
    if same is None and not any(other[0] == key[0] for other in live):
        return out
    if same is None:
        plain = [o for o, d in live.items() if name_of(d) == name_of(rendered) and o not in with_pods]
        same = live[plain[0]] if plain else None
    if same is not None:
        out["metadata"]["name"] = name_of(same)
        out["spec"]["selector"] = copy.deepcopy(same["spec"]["selector"])
        labels = out["spec"]["selector"].get("matchLabels") or {}
        if labels.get(LABEL_REVISION, key[1]) == key[1]:
            return out
        out["spec"]["selector"] = copy.deepcopy(rendered["spec"]["selector"])
    out["metadata"]["name"] = f"{name_of(rendered)}-{key[1]}"
    out["spec"]["selector"]["matchLabels"] = {**out["spec"]["selector"]["matchLabels"], LABEL_REVISION: key[1]}
    return out
