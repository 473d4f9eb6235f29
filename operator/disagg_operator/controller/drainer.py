"""Lets workers finish their requests before they are deleted, and calls them back if they may stay.

Each is told with a lease, which is renewed every second: a worker whose operator is gone serves
again by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from disagg_operator.autoscaling.signals.collector import worker_target
from disagg_operator.autoscaling.signals.direct import Target
from disagg_operator.controller import children as kids
from disagg_operator.controller import decision_report, drain_ends, victims
from disagg_operator.controller.one_pass import Pass
from disagg_operator.controller.victims import BUSY, IDLE, UNABLE
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Conflict, Forbidden, Invalid, NotFound
from disagg_operator.kube.pods import epoch_s
from disagg_operator.kube.resources import DEPLOYMENT, POD, name_of, uid_of
from disagg_operator.rollout import looking
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.protocol import DRAIN_PATH

log = logging.getLogger(__name__)

ASK_INTERVAL_S = 1.0
_LEASE_S = 30.0
# An answer is not believed any longer than its lease lasts.
_BELIEVED_S = 10.0
_MOST_SILENCES = 3
_NEVER = (400, 401, 404, 405)
# Of these, the answers of a worker of an earlier release, from which nothing else is expected.
_EARLIER = (404, 405)

Ask = Callable[[Target, Mapping[str, Any]], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class _Answer:
    """The last answer of a worker."""

    target: Target
    said: str = BUSY
    silences: int = 0
    deaf: bool = False
    """Whether it should be able to drain, but does not answer, or refuses."""
    at_s: float = float("-inf")
    until_s: float = float("inf")
    """When it is not asked any more: no reconcile has done what is due then."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
    """Held during a call, so that the calls reach the worker in their order."""


class Drainer:
    """The workers that are told to take nothing new. `clock` is monotonic.

    `wake` is called when a worker says something else than before, `called_back` for each worker
    that may stay, and `unanswered` with the number of workers that do not answer, once for each.
    """

    def __init__(
        self,
        kube: Kube,
        ask: Ask,
        wake: Callable[[Key], None],
        clock: Callable[[], float],
        called_back: Callable[[], None],
        may_act: Callable[[], bool] = lambda: True,
        unanswered: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._kube = kube
        self._ask = ask
        self._wake = wake
        self._clock = clock
        self._called_back = called_back
        self._may_act = may_act
        self._unanswered = unanswered
        self._answers: dict[Key, dict[str, _Answer]] = {}
        # The wall clock when the monotonic one was at zero, as it was at the first drain.
        self._wall_0: float | None = None

    def forget(self, key: Key) -> None:
        """Forget a resource that has been deleted; its workers end by themselves."""
        self._answers.pop(key, None)

    async def look(self) -> None:
        """Ask all of them once more."""
        if not self._may_act():
            self._answers.clear()
            return
        now_s = self._clock()
        every = [(key, uid, before) for key, answers in self._answers.items() for uid, before in answers.items()]
        await asyncio.gather(*(self._look_at(*one) for one in every if now_s < one[2].until_s))

    async def _look_at(self, key: Key, uid: str, before: _Answer) -> None:
        """Ask a worker once more, unless it has been called back meanwhile."""
        async with before.turn:
            if self._answers.get(key, {}).get(uid) is not before:
                return
            answer = await self._ask_once(before)
            known = self._answers.get(key, {})
            if known.get(uid) is before:
                known[uid] = answer
                if answer.said != before.said:
                    self._wake(key)

    async def prepare(self, run: Pass, now: str) -> None:
        """Tell the workers that are to go, and set the sizes that workloads keep until then.

        `now` is the time in RFC 3339. It is read once; from then on time follows the monotonic
        clock, so that no wall clock that jumps ends a drain or prolongs it. Raises KubeError.
        """
        if run.step is None:
            return
        if self._wall_0 is None:
            self._wall_0 = epoch_s(now) - self._clock()
        now_s = self._wall_0 + self._clock()
        workloads = looking.workloads(run.children.objects.values())
        # If one of them may not be written now, nothing of the others goes.
        blocked = any((DEPLOYMENT.kind, name_of(obj)) in run.blocked for obj in workloads.values())
        answers: dict[str, _Answer] = {}
        for (role, revision), deployment in workloads.items():
            replicas = int((deployment.get("spec") or {}).get("replicas") or 0)
            wanted = run.step.plan.replicas.get((role, revision), 0)
            if blocked:
                wanted = run.sizes[role, revision] = max(wanted, replicas)
            found = victims.chosen(looking.pods_of(run.children.pods, (role, revision)), wanted, run.live.loads)
            await self._call_back(run, found.called_back)
            if wanted < replicas:
                run.view.certain()
                timeout_s = float(run.plan.resource.spec.pool(role).drain.timeout_seconds)
                told = await self._tell(run, found.going, timeout_s, now_s)
                answers |= told
                size = self._size(run, found.going, told, (wanted, replicas), now_s)
                if size < replicas and victims.need_a_price(found.going):
                    await self._price(run, looking.pods_of(run.children.pods, (role, revision)))
                run.sizes[role, revision] = size
        if answers:
            self._answers[run.key] = answers
        else:
            self._answers.pop(run.key, None)

    def _size(
        self, run: Pass, going: Sequence[Obj], told: Mapping[str, _Answer], numbers: tuple[int, int], now_s: float
    ) -> int:
        """Return the replicas that a workload may have now, of `numbers`, (wanted, present)."""
        wanted, present = numbers
        left = victims.waiting(going, {uid: answer.said for uid, answer in told.items()}, now_s)
        if left:
            run.waits_s.append(max(0.1, min(victims.left_s(pod, now_s) for pod in left)))
        return min(present, wanted + len(left))

    async def _tell(self, run: Pass, going: Sequence[Obj], timeout_s: float, now_s: float) -> dict[str, _Answer]:
        """Tell the workers of pods that are to go, and mark them. Returns the answers by uid."""
        bearer = kids.bearer_in(run.children, run.key[1])
        pods = {uid_of(pod): pod for pod in going if victims.can_drain(pod)}
        known = self._answers.get(run.key, {})
        told = {
            uid: known.get(uid) or _Answer(replace(worker_target(pod, bearer), path=DRAIN_PATH))
            for uid, pod in pods.items()
        }
        stale = [uid for uid, answer in told.items() if self._clock() - answer.at_s > _BELIEVED_S]
        told |= dict(zip(stale, await asyncio.gather(*(self._asked(told[uid]) for uid in stale)), strict=True))
        deaf = [
            pod for uid, pod in pods.items() if told[uid].deaf and drain_ends.UNANSWERED not in drain_ends.told_of(pod)
        ]
        for uid, pod in pods.items():
            said = told[uid].said
            wanted = {} if said == UNABLE else victims.mark(pod, timeout_s, now_s, idle=said == IDLE)
            wanted |= drain_ends.told_with(pod, [drain_ends.UNANSWERED]) if pod in deaf else {}
            if await self._annotate(run, pod, wanted):
                until_s = self._clock() + victims.left_s(pod, now_s) + _LEASE_S
                told[uid] = replace(told[uid], until_s=until_s)
            else:
                del told[uid]
        if heard := [pod for pod in deaf if uid_of(pod) in told]:
            run.notes.append(drain_ends.unanswered(heard))
            self._unanswered(len(heard))
        return told

    async def _asked(self, before: _Answer) -> _Answer:
        async with before.turn:
            return await self._ask_once(before)

    async def _ask_once(self, before: _Answer) -> _Answer:
        """Ask a worker, and return its answer."""
        status = await self._ask(before.target, {"lease_s": _LEASE_S})
        silences = before.silences + 1 if status is None else 0
        deaf = silences >= _MOST_SILENCES or (status in _NEVER and status not in _EARLIER)
        if deaf or status in _NEVER:
            said = UNABLE
        elif status is None:
            said = before.said
        else:
            said = IDLE if status == 200 else BUSY
        return replace(before, said=said, silences=silences, deaf=deaf, at_s=self._clock())

    async def _call_back(self, run: Pass, pods: Iterable[Obj]) -> None:
        """Let pods that are marked serve again."""
        bearer = kids.bearer_in(run.children, run.key[1])
        for pod in pods:
            # A worker that cannot be told serves again when its lease is over.
            target = replace(worker_target(pod, bearer), path=DRAIN_PATH)
            before = self._answers.get(run.key, {}).pop(uid_of(pod), None) or _Answer(target)
            async with before.turn:
                await self._ask(target, {"lease_s": 0.0})
            if await self._annotate(run, pod, victims.unmark()):
                log.info("%s/%s: worker %s is called back", *run.key, name_of(pod))
                self._called_back()

    async def _annotate(self, run: Pass, pod: Obj, annotations: Mapping[str, str | None]) -> bool:
        """Write annotations on a pod, and return whether it has them. Raises KubeError."""
        if not annotations:
            return True
        try:
            patch = {"metadata": {"annotations": dict(annotations)}}
            found = await run.kube.merge(POD, run.key[0], name_of(pod), patch)
        except NotFound:
            return False
        except (Conflict, Forbidden, Invalid) as error:
            log.warning("%s/%s: pod %s is not annotated: %s", *run.key, name_of(pod), error)
            return False
        pod["metadata"]["annotations"] = found["metadata"].get("annotations") or {}
        return True

    async def _price(self, run: Pass, pods: Sequence[Obj]) -> None:
        """Set the deletion costs of pods of which some go without a mark."""
        here = [pod for pod in pods if not victims.is_marked(pod)]
        loads = {name_of(pod): run.live.loads[name_of(pod)] for pod in pods if name_of(pod) in run.live.loads}
        costs = decision_report.deletion_costs(here, loads)
        for pod in here:
            if name_of(pod) in costs:
                await self._annotate(run, pod, {decision_report.DELETION_COST: costs[name_of(pod)]})
