"""PURE: What the planner of rollouts sees of a deployment, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WorkersKey = tuple[str, str]
"""(role, revision of the role)"""
PODS = "pods"
"""The kind of device of workers without accelerators: one of it is one pod."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What one worker holds of the cluster while its pod exists."""

    kind: str = PODS
    count: int = 1


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of one role and one revision, which one workload makes."""

    role: str
    revision: str
    desired: int
    """The number of replicas that the workload has now."""
    existing: int = 0
    """Pods that are not terminating."""
    ready: int = 0
    """Pods that are ready and not terminating."""
    terminating: int = 0
    """Pods that are still there, but are to go."""
    recallable: int = 0
    """Those of them that are not deleted yet, and serve again at once if they may stay."""
    unscheduled: int = 0
    """Existing pods that are on no node."""
    unschedulable_since_s: float | None = None
    """When the scheduler first found no room for one of the pods that still wait for it."""
    served: bool = False
    """Whether a pair with these workers has ever moved KV."""
    given_up: bool = False
    """Whether they get no requests, because their revision was not promoted."""
    compat: str = ""
    """The hash that is equal for workers that can exchange KV; empty if none has reported it."""
    devices: Devices = Devices()
    order: int = 0
    """A number that grows with the age of the revision's spec: the newest is the highest."""

    @property
    def key(self) -> WorkersKey:
        return self.role, self.revision

    def recalled(self, desired: int) -> int:
        """Return how many workers that were to go stay if so many are to be there."""
        return min(self.recallable, max(0, desired - max(self.existing, self.desired)))

    @property
    def gone(self) -> bool:
        """Whether there is no pod of it, not even one that is terminating."""
        return self.existing + self.terminating == 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What is remembered of a rollout from one look to the next. Losing it does no harm."""

    target: str
    """The revision that is rolled out."""
    best: int
    """The highest number of steps that have been made so far."""
    since_s: float
    """When that number was reached."""
    held: Mapping[str, int] = field(default_factory=dict)
    """The most devices that pods on nodes have held, by kind."""
    full: frozenset[str] = frozenset()
    """The kinds of which the cluster has no more than that."""


@dataclass(frozen=True, slots=True)
class RolloutState:
    """A deployment as one look finds it. The mappings are by role."""

    workers: tuple[Workers, ...]
    target: Mapping[str, str]
    """The revision that each role should have."""
    wanted: Mapping[str, int]
    """The size that each pool should have."""
    pairs: frozenset[tuple[str, str]] = frozenset()
    """(prefill, decode) revisions that one spec has rendered together."""
    target_devices: Mapping[str, Devices] = field(default_factory=dict)
    linked: bool | None = None
    """Whether a pair of the target has moved KV; None if no router has reported lately."""
    now_s: float = 0.0
    progress: Progress | None = None
    moved_s: float | None = None
    """When a worker of the target last had loaded more of its model than ever before."""

    def devices_of(self, role: str) -> Devices:
        """Return what a worker of the target holds."""
        return self.target_devices.get(role, Devices())


@dataclass(frozen=True, slots=True)
class RolloutRules:
    """The way in which a deployment is rolled out. The mappings are by role."""

    surge: Mapping[str, int]
    """Workers beyond the size of the pool."""
    unavailable: Mapping[str, int]
    """Workers that may be missing."""
    surge_gpus: int | None = None
    """Accelerators of both pools beyond those of the pools' sizes."""
    recreate: bool = False
    """Whether the old workers go before the new ones come."""
    paused: bool = False
    canary: int | None = None
    """The percentage of the requests for which there are to be new workers, once the first pair has
    served; None to go on.
    """
    deadline_s: float = 7800.0
    """Seconds without progress after which a rollout counts as stalled."""
    full_after_s: float = 60.0
    """Seconds for which a pod finds no room until the cluster counts as full."""


@dataclass(frozen=True, slots=True)
class RolloutView:
    """The part of status about a rollout."""

    reason: str
    message: str
    complete: bool = False


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """The next number of replicas of each workload, and what to say about it."""

    replicas: Mapping[WorkersKey, int]
    reason: str
    message: str
    complete: bool = False
    """Whether only workers of the target exist, and the pools have their sizes."""
    single: bool = True
    """Whether there are workers of one revision only."""
    rolling: bool = False
    """Whether revisions are being replaced, or the first one has not served yet."""
    proven: bool = False
    """Whether a pair of the target has moved KV."""
    exchanging: bool = False
    """Whether no pair serves because there is no room for an old and a new one."""
    expired: bool = False
    """Whether there was no progress for longer than the deadline."""
    progress: Progress | None = None
    """What is to be remembered."""
    wake_s: float | None = None
    """Seconds after which to look again even if nothing changes."""
