"""A small cluster in which rollouts are simulated, with its own account of what must hold."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from disagg_operator.rollout.planner import plan
from disagg_operator.rollout.values import (
    PODS,
    Devices,
    Progress,
    RolloutPlan,
    RolloutRules,
    RolloutState,
    Workers,
    WorkersKey,
)

ROLES = ("prefill", "decode")


@dataclass(slots=True)
class Pod:
    """A pod of one workload."""

    key: WorkersKey
    placed: bool = False
    waits_since: float = 0.0
    starts_in: int = 0
    leaves_in: int | None = None
    recallable: bool = False
    """Whether it drains before it is deleted, so that it may still stay."""

    @property
    def ready(self) -> bool:
        return self.placed and self.starts_in == 0 and self.leaves_in is None


@dataclass(slots=True)
class Kind:
    """What the pods of one revision of a role are like."""

    devices: Devices
    compat: str
    broken: bool = False


@dataclass
class Simulated:
    """The cluster, its controllers, and an operator that may be killed between two writes."""

    rules: RolloutRules
    wanted: dict[str, int]
    capacity: dict[str, int]
    rng: random.Random
    kinds: dict[WorkersKey, Kind] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)
    desired: dict[WorkersKey, int] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    served: set[WorkersKey] = field(default_factory=set)
    told: set[WorkersKey] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    orders: dict[WorkersKey, int] = field(default_factory=dict)
    progress: Progress | None = None
    now: float = 0.0
    blind: bool = False
    start_ticks: int = 2
    drain_ticks: int = 2
    last: RolloutPlan | None = None
    scaled: bool = False
    alive: set[str] = field(default_factory=set)
    began: tuple[Fraction, dict[str, int]] = (Fraction(0), {})
    """What served before the writes of this tick."""
    problems: list[str] = field(default_factory=list)

    # -- what tests do --

    def roll(self, revisions: Mapping[str, str], kinds: Mapping[str, Kind]) -> None:
        """Change the spec: each role gets a revision."""
        self.target = dict(revisions)
        for role, revision in revisions.items():
            self.kinds.setdefault((role, revision), kinds[role])
        self.pairs.add((revisions["prefill"], revisions["decode"]))
        newest = max(self.orders.values(), default=0) + 1
        self.orders |= dict.fromkeys(revisions.items(), newest)

    def settle(self, ticks: int = 400) -> RolloutPlan:
        for _ in range(ticks):
            found = self.tick()
            if found.complete and not found.rolling:
                return found
        raise AssertionError(f"no end after {ticks} ticks: {self.rules} {self.capacity} {self.wanted} {self.last}")

    def scale(self, sizes: Mapping[str, int]) -> None:
        self.wanted, self.scaled = dict(sizes), True

    def fail_one(self) -> None:
        """Let a ready worker restart, or its node goes."""
        ready = [pod for pod in self.pods if pod.ready]
        if ready:
            victim = self.rng.choice(ready)
            if self.rng.random() < 0.5:
                victim.starts_in = self.start_ticks
            else:
                self.pods.remove(victim)

    def ready(self, key: WorkersKey) -> int:
        return sum(pod.ready for pod in self.pods if pod.key == key)

    # -- one step of time --

    def tick(self, kill: bool = False) -> RolloutPlan:
        found = plan(self.state(), self.rules)
        self.last = found
        self.alive = {key[1] for key, count in found.replicas.items() if count or self.desired.get(key)}
        self.check_plan(found)
        writes = [(key, count) for key, count in found.replicas.items() if self.desired.get(key, 0) != count]
        self.began = self.share()
        self.rng.shuffle(writes)
        for key, count in writes[: self.rng.randrange(len(writes) + 1) if kill else None]:
            self.write(key, count)
        if not kill:
            self.progress = found.progress
        elif self.rng.random() < 0.3:
            self.progress = None  # the status is lost
        if found.proven:
            self.served |= {(role, self.target[role]) for role in ROLES if self.wanted[role]}
        self.controllers()
        self.now += 10.0
        return found

    def state(self) -> RolloutState:
        keys = {pod.key for pod in self.pods} | {key for key, count in self.desired.items() if count}
        return RolloutState(
            workers=tuple(self.workers(key) for key in sorted(keys)),
            target=dict(self.target),
            wanted=dict(self.wanted),
            pairs=frozenset(self.pairs),
            target_devices={role: self.kinds[role, self.target[role]].devices for role in ROLES},
            linked=None if self.blind else self.linked(),
            now_s=self.now,
            progress=self.progress,
        )

    def workers(self, key: WorkersKey) -> Workers:
        mine = [pod for pod in self.pods if pod.key == key]
        here = [pod for pod in mine if pod.leaves_in is None]
        waits = [pod.waits_since for pod in here if not pod.placed]
        kind = self.kinds[key]
        if not self.blind and any(pod.ready for pod in here):
            self.told.add(key)  # it is kept with the workload
        return Workers(
            *key,
            desired=self.desired.get(key, 0),
            existing=len(here),
            ready=sum(pod.ready for pod in here),
            terminating=len(mine) - len(here),
            recallable=sum(pod.recallable for pod in mine),
            unscheduled=len(waits),
            unschedulable_since_s=min(waits, default=None),
            served=key in self.served,
            compat=kind.compat if key in self.told else "",
            devices=kind.devices,
            order=self.orders[key],
        )

    def linked(self) -> bool:
        keys = [(role, self.target[role]) for role in ROLES if self.wanted[role]]
        same = len({self.kinds[key].compat for key in keys}) == 1
        return same and all(self.ready(key) for key in keys)

    def write(self, key: WorkersKey, count: int) -> None:
        before, held = self.share(), self.held(key)
        down = count < self.desired.get(key, 0)
        self.desired[key] = count
        if down:
            self.check_down(key, before)
        else:
            here = sum(pod.key == key and pod.leaves_in is None for pod in self.pods)
            for pod in [pod for pod in self.pods if pod.key == key and pod.recallable][: max(0, count - here)]:
                pod.leaves_in, pod.recallable = None, False
            self.check_up(key, held)

    def controllers(self) -> None:
        """Do what the ReplicaSet controller, the scheduler and the kubelets do in one tick."""
        for pod in list(self.pods):
            if pod.leaves_in is not None:
                pod.leaves_in -= 1
                if pod.leaves_in <= 0:
                    self.pods.remove(pod)
        for key, count in self.desired.items():
            if self.rng.random() < 0.2:
                continue  # the controller is late
            here = [pod for pod in self.pods if pod.key == key and pod.leaves_in is None]
            self.pods += [Pod(key, waits_since=self.now, starts_in=self.start_ticks) for _ in range(count - len(here))]
            for pod in sorted(here, key=lambda pod: (pod.ready, pod.placed))[: max(0, len(here) - count)]:
                if pod.placed:
                    pod.leaves_in = self.rng.randint(1, self.drain_ticks)
                    pod.recallable = pod.starts_in == 0 and self.rng.random() < 0.5
                else:
                    self.pods.remove(pod)
        free = {kind: amount - self.used(kind) for kind, amount in self.capacity.items()}
        for pod in self.pods:
            devices = self.kinds[pod.key].devices
            if not pod.placed and free[devices.kind] >= devices.count:
                pod.placed = True
                free[devices.kind] -= devices.count
            elif pod.placed and pod.starts_in > 0 and not self.kinds[pod.key].broken:
                pod.starts_in -= 1

    def used(self, kind: str) -> int:
        found = [self.kinds[pod.key].devices for pod in self.pods if pod.placed]
        return sum(d.count for d in found if d.kind == kind)

    # -- what must hold, in the words of the documentation --

    def share(self) -> tuple[Fraction, dict[str, int]]:
        """Return the share of the pools' size that serves in pairs, and the paired workers."""
        cells: dict[str, dict[str, int]] = {}
        for key, count in self.desired.items():
            by_role = cells.setdefault(self.kinds[key].compat, dict.fromkeys(ROLES, 0))
            by_role[key[0]] += min(count, self.ready(key))
        whole = [c for c in cells.values() if all(c[r] for r in ROLES if self.wanted[r])]
        share = sum((min(Fraction(c[r], self.wanted[r]) for r in ROLES if self.wanted[r]) for c in whole), Fraction(0))
        return share, {role: sum(c[role] for c in whole) for role in ROLES}

    def two_pairs_fit(self) -> bool:
        """Return whether the rules and the cluster have room for an old and a new pair."""
        groups = {*((r, self.target[r]) for r in ROLES), *(k for k, n in self.desired.items() if n)}
        beyond = 0
        for kind in {self.kinds[key].devices.kind for key in groups}:
            per_role = {r: max(self.kinds[k].devices.count for k in groups if k[0] == r) for r in ROLES}
            mine = [r for r in ROLES if self.kinds[r, self.target[r]].devices.kind == kind]
            sizes = sum(self.wanted[r] * per_role[r] for r in mine)
            surge = sum(self.rules.surge[r] * per_role[r] for r in mine)
            need = 2 * sum(per_role[r] for r in mine)
            if min(self.capacity.get(kind, 0), sizes + surge) < need:
                return False
            beyond += max(0, need - sizes)
        return self.rules.surge_gpus is None or beyond <= self.rules.surge_gpus

    def roomy(self) -> bool:
        """Return whether the cluster holds the pools and the whole surge."""
        return all(self.capacity[kind] >= 10_000 for kind in self.capacity) and all(self.rules.surge.values())

    def check_down(self, of: WorkersKey, before: tuple[Fraction, dict[str, int]]) -> None:
        share, paired = self.share()
        if self.rules.recreate or 0 in self.wanted.values():
            return
        if self.roomy() and self.rules.surge_gpus is None and len(self.alive) <= 2:
            floors = {r: max(1, self.wanted[r] - self.rules.unavailable[r]) for r in ROLES}
            least = min(Fraction(floors[r], self.wanted[r]) for r in ROLES)
            if (share < min(least, before[0], self.began[0]) and not self.scaled) or any(
                paired[r] < min(floors[r], before[1][r], self.began[1][r]) for r in ROLES
            ):
                self.problems.append(f"{of}: {before} became {share}, {paired}, with {floors}")
        elif self.two_pairs_fit() and share == 0 < before[0]:
            self.problems.append(f"{of}: no pair is left")

    def check_up(self, key: WorkersKey, held: int) -> None:
        others = [pod.key for pod in self.pods if pod.key[1] != self.target[pod.key[0]]]
        if self.rules.recreate and others and key[1] == self.target[key[0]]:
            self.problems.append(f"{key}: new workers beside {others}")
        kind = self.kinds[key].devices.kind
        if self.held(key) <= held or (self.last is not None and not self.last.rolling):
            return
        counts = {r: max(k.devices.count for (role, _), k in self.kinds.items() if role == r) for r in ROLES}
        mine = [r for r in ROLES if self.kinds[r, self.target[r]].devices.kind == kind]
        ours = sum(self.wanted[r] * counts[r] for r in mine)
        surge = sum(self.rules.surge[r] * counts[r] for r in mine)
        if self.rules.surge_gpus is not None and kind != PODS:
            surge = min(surge, self.rules.surge_gpus)
        if self.held(key) > ours + surge:
            self.problems.append(f"{key}: {self.held(key)} {kind} are held, {ours} + {surge} allowed")

    def held(self, of: WorkersKey) -> int:
        kind, total = self.kinds[of].devices.kind, 0
        for key in {*self.desired, *(pod.key for pod in self.pods)}:
            if self.kinds[key].devices.kind != kind:
                continue
            here = sum(pod.key == key and pod.leaves_in is None for pod in self.pods)
            leaving = sum(pod.key == key and pod.leaves_in is not None for pod in self.pods)
            total += (max(here, self.desired.get(key, 0)) + leaving) * self.kinds[key].devices.count
        return total

    def check_plan(self, found: RolloutPlan) -> None:
        """Check what a plan must keep, whatever was written of the one before."""
        for role in ROLES:
            key = (role, self.target[role])
            pairs = all(self.ready((r, self.target[r])) for r in ROLES)
            fewer = found.replicas[key] < min(self.wanted[role], self.ready(key), self.desired.get(key, 0))
            share = self.rules.canary is not None and found.replicas[key] >= self.part(role)
            if fewer and pairs and not share and not self.gives_room(role):
                self.problems.append(f"{key}: serving workers of the target are deleted")
        self.check_canary(found)
        if 0 in self.wanted.values() or self.rules.recreate or not self.two_pairs_fit():
            return
        for cell in {self.kinds[key].compat for key in found.replicas}:
            keys = [k for k in found.replicas if self.kinds[k].compat == cell and k[1] != self.target[k[0]]]
            has = {key[0] for key in keys if found.replicas[key]}
            had = {key[0] for key in keys if self.ready(key) and self.desired.get(key, 0)}
            if len(had) == 2 and len(has) == 1 and cell not in {self.kinds[r, self.target[r]].compat for r in ROLES}:
                self.problems.append(f"cell {cell}: {had} became {has}")

    def check_canary(self, found: RolloutPlan) -> None:
        """Check that a rollout which tries a revision stays at its share."""
        percent = self.rules.canary
        if percent is None or not found.proven or found.single or found.exchanging or self.rules.recreate:
            return
        for role in ROLES:
            new = (role, self.target[role])
            old = [key for key in found.replicas if key[0] == role and key != new and self.desired.get(key)]
            part = self.part(role)
            if not any(self.ready(key) for key in old):
                continue
            if found.replicas[new] > max(part, self.desired.get(new, 0)):
                self.problems.append(f"{new}: {found.replicas[new]} workers for {percent} %")
            rest, had = (sum(count[key] for key in old) for count in (found.replicas, self.desired))
            if self.roomy() and not self.scaled and rest < min(had, self.wanted[role] - part):
                self.problems.append(f"{role}: {rest} old workers are left of {had} beside {percent} %")

    def part(self, role: str) -> int:
        """Return the new workers of a role that the canary's share needs."""
        return max(1, math.ceil(self.wanted[role] * (self.rules.canary or 0) / 100))

    def gives_room(self, role: str) -> bool:
        """Return whether a pool that does not change makes room for the other."""
        return all(pod.key == (role, self.target[role]) for pod in self.pods if pod.key[0] == role)
