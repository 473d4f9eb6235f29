"""The transient knowledge of the operator: filled by the autoscaler loop, read by the reconciler.

It is never stored, and all of it may be lost: after a restart the first tick fills it again, before
the first reconcile runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.idling import IdleWatch
from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.kube.contests import Contests
from disagg_operator.rollout.canary_reports import CanaryReports
from disagg_operator.rollout.load_watch import LoadWatch
from disagg_operator.rollout.steady_times import SteadyTimes
from disagg_operator.status.effectiveness import Spared
from disagg_operator.status.events import Note
from disagg_operator.status.kv_links import RouterView
from disagg_operator.vocabulary import Key
from disagg_wire.problems import WorkerProblem


@dataclass(slots=True)
class Live:
    """The knowledge about one DisaggDeployment."""

    uid: str = ""
    bearer: str | None = None
    """The token for /internal/ of the pods; None until it is known, or if it was refused."""
    plan: ScalePlan | None = None
    """The settings of the spec that is served; None before the first reconcile."""
    written: tuple[object, ScalePlan | None] = (None, None)
    """What the settings of the spec as it is written were read from, and the settings."""
    view: RouterView | None = None
    """The routers' last report on the pairs."""
    view_at: float = float("-inf")
    """The time of that report, on the monotonic clock."""
    canary: CanaryReports = field(default_factory=CanaryReports)
    """What the routers have counted of revisions that are tried."""
    steady: SteadyTimes = field(default_factory=SteadyTimes)
    """For how long this process has seen a rollout wait."""
    loading: LoadWatch = field(default_factory=LoadWatch)
    """Whether workers that are not ready load their models on."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    """The last decision for each pool that is scaled, to be carried out by the reconcile."""
    memory: PolicyMemory = field(default_factory=PolicyMemory)
    """The state of the policies between steps."""
    starts: dict[str, Starts] = field(default_factory=dict)
    """The starting times of the last pods of each pool."""
    flip: Flip | None = None
    """The role flip in progress, or None."""
    flips_s: tuple[float, ...] = ()
    """The seconds that the last role flips took."""
    loads: dict[str, float] = field(default_factory=dict)
    """Requests by pod at the last look."""
    told: dict[str, WorkerProblem] = field(default_factory=dict)
    """What workers that are not ready say about themselves, by pod."""
    hindered: dict[str, WorkerProblem] = field(default_factory=dict)
    """What the kubelet says of pods that it cannot start, by pod."""
    spared: Spared = field(default_factory=Spared)
    """What decode workers computed themselves and what they were spared."""
    idle: IdleWatch = field(default_factory=IdleWatch)
    """How long nobody has asked anything, as far as it is known."""
    awake: tuple[str, str] | None = None
    """Why it does not go to zero although nobody asks, as a reason and a message."""
    due: bool = False
    """Whether the schedule asks for workers now or soon."""
    wake: bool = False
    """Whether workers are asked for while both pools are at zero; cleared once they come."""
    woken_s: float | None = None
    """The monotonic time at which both pools were woken, until they serve."""
    trouble: tuple[str, str] | None = None
    """(reason, message) if the Prometheus of this deployment could not be read at the last look."""
    contests: Contests = field(default_factory=Contests)
    """The objects that somebody else changes again and again."""
    notes: list[Note] = field(default_factory=list)
    """Events that the next reconcile sends."""
    loaded: bool = False
    """Whether the state from before the operator's last start has been read."""
    unseeded: bool = False
    """Whether the policy has not learned from the previous days yet."""
    unsaved: bool = False
    """Whether the policy has learned something since the state was last saved."""
    saved_s: float = float("-inf")
    """The time at which the state was last saved, in seconds since 1970."""
    stored_s: float | None = None
    """The time that the stored state bears; None if this process knows of none."""

    def plan_from(self, source: object, read: Callable[[], ScalePlan | None]) -> ScalePlan | None:
        """Return the settings that are served, or else those of the spec as it is written.

        Each tick asks for them, and to `read` them takes milliseconds: it is done once a `source`.
        """
        if self.plan is None and self.written[0] != source:
            self.written = source, read()
        return self.plan or self.written[1]


class LiveTable:
    """`Live` by key. A resource that was recreated under the same name starts empty."""

    def __init__(self) -> None:
        self._entries: dict[Key, Live] = {}

    def of(self, key: Key, uid: str) -> Live:
        """Return the entry of a resource, which is new if its uid has changed."""
        entry = self._entries.get(key)
        if entry is None or entry.uid != uid:
            entry = self._entries[key] = Live(uid)
        return entry

    def note(self, keys: Iterable[Key], note: Note | None) -> None:
        """Keep an Event for the next reconcile of resources that are known."""
        for entry in (self._entries[key] for key in keys if key in self._entries):
            entry.notes += [] if note is None else [note]

    def forget_all_but(self, keys: frozenset[Key]) -> list[Key]:
        """Remove the entries of all other keys, and return those keys."""
        gone = [k for k in self._entries if k not in keys]
        for key in gone:
            del self._entries[key]
        return gone

    def items(self) -> list[tuple[Key, Live]]:
        return list(self._entries.items())
