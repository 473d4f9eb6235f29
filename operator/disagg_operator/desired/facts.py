"""PURE: what rendering needs to know beside the resource itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Images:
    """Default images of this release."""

    worker: str = "disagg.dev/worker:dev"
    router: str = "disagg.dev/router:dev"
    pull_policy: str = "IfNotPresent"


@dataclass(frozen=True, slots=True)
class Facts:
    """`replicas`: what to write into each DisaggPool's spec.replicas.

    `declared`: the replicas value to remember in an annotation of the pool (absent: no annotation).
    `pool_uids`: UIDs of the DisaggPools that exist; a pool's children are rendered only under an
    existing one. `cluster_key`: the new key when its Secret does not exist yet, else None.
    `attachments_available`: the NetworkAttachmentDefinition API exists.
    """

    uid: str
    replicas: Mapping[str, int]
    declared: Mapping[str, str] = field(default_factory=dict)
    pool_uids: Mapping[str, str] = field(default_factory=dict)
    images: Images = Images()
    cluster_key: str | None = None
    attachments_available: bool = True
