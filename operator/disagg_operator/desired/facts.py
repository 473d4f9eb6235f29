"""PURE: The facts that rendering needs in addition to the resource itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from disagg_operator.desired.renderer import CURRENT
from disagg_operator.vocabulary import Obj


@dataclass(frozen=True, slots=True)
class Images:
    """What pods get from a release of the operator: default images, and how they are rendered."""

    worker: str = "disagg.dev/worker:dev"
    router: str = "disagg.dev/router:dev"
    pull_policy: str = "IfNotPresent"
    adapter: str = "disagg.dev/adapter:dev"
    engines: Mapping[str, str] = field(default_factory=dict)
    """The images of engines of other projects that differ from those of this release, by engine."""
    renderer: int = CURRENT
    """The version of the renderer (`desired/renderer.py`)."""


@dataclass(frozen=True, slots=True)
class NetworkAccess:
    """What the network policies of a cluster must let through besides the parts of disagg."""

    scrapers: Sequence[Obj] = (
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}},
    )
    """The peers, as in a NetworkPolicy, that may read the metrics of workers."""
    web_ports: Sequence[int] = (443, 80)
    """The TCP ports by which workers reach the web or its proxy, to fetch a model."""

    @classmethod
    def given(cls, scrapers: Sequence[Obj] | None, web_ports: Sequence[int] | None) -> NetworkAccess:
        """Return what the operator's owner has set; None stands for a default."""
        default = cls()
        return cls(
            default.scrapers if scrapers is None else tuple(scrapers),
            default.web_ports if web_ports is None else tuple(web_ports),
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a DisaggDeployment and its cluster. The mappings are by role."""

    uid: str
    """The UID of the DisaggDeployment."""
    replicas: Mapping[str, int]
    """The number to write into spec.replicas of each DisaggPool."""
    declared: Mapping[str, str] = field(default_factory=dict)
    """The value of each pool's annotation of declared replicas; without one, no annotation."""
    pool_uids: Mapping[str, str] = field(default_factory=dict)
    """The UIDs of the existing DisaggPools; only their children are rendered."""
    images: Images = Images()
    cluster_key: str | None = None
    """The new cluster key if its Secret does not exist yet, else None."""
    attachments_available: bool = True
    """Whether the cluster has the NetworkAttachmentDefinition API."""
    access: NetworkAccess = NetworkAccess()
    runtime: str | None = None
    """The value of each pool's annotation of pins; without one, no annotation."""
