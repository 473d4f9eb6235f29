"""Record what the operator keeps from one process to the next: scaling states, decision records, statuses, marks on pools, a profile."""

from __future__ import annotations

import asyncio
import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from disagg_operator.autoscaling.forecasting import Forecasting
from disagg_operator.autoscaling.observation import DecodeSignals, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.podfacts import Starts
from disagg_operator.autoscaling.predictor import Predicting
from disagg_operator.autoscaling.queueing import Queueing
from disagg_operator.autoscaling.store import StateStore, decode
from disagg_operator.live import Live
from disagg_operator.observe import Network, Observed, Problem, RouterView, WorkerLink, Workload
from disagg_operator.replicas import Declared

from disagg_operator import decisions, plan, replicas, status
from disagg_operator.autoscaling import history, predictive
from disagg_operator.autoscaling.policy import Decision, Sample
from disagg_operator.autoscaling.records import Records
from disagg_operator.autoscaling.signals.fold import Folded
from disagg_operator.desired.names import selector_text
from disagg_operator.planning import profile as profiles

HERE = Path(__file__).resolve().parent
OUT = HERE / "states"
UID = "11111111-2222-3333-4444-555555555555"
T0 = 1_790_000_000.0  # a Monday, 14:13 UTC
STEP_S = 5.0
COLD_START_S = 90.0
Obj = dict[str, Any]


class Cluster:
    """The one ConfigMap that the store reads and writes."""

    def __init__(self) -> None:
        self.config_map: Obj | None = None

    async def get(self, *_: object) -> Obj | None:
        return self.config_map

    async def apply(self, obj: Obj) -> Obj:
        self.config_map = obj
        return obj


@dataclass
class Pool:
    """Workers that start and serve. `starting`: when each was made; `stuck_until_s`: until then none gets ready."""

    ready: int
    starting: list[float] = field(default_factory=list)
    stuck_until_s: float = -math.inf

    def resize(self, wanted: int, now_s: float) -> None:
        while self.ready + len(self.starting) < wanted:
            self.starting.append(now_s)
        while self.ready + len(self.starting) > wanted:
            if self.starting:
                self.starting.pop()
            else:
                self.ready -= 1

    def pods(self, now_s: float) -> Pods:
        if now_s >= self.stuck_until_s:
            up = [at for at in self.starting if now_s - at >= COLD_START_S]
            self.ready += len(up)
            self.starting = [at for at in self.starting if at not in up]
        ages = tuple(round(now_s - at, 1) for at in self.starting)
        return Pods(self.ready + len(ages), self.ready, ages, 0, COLD_START_S + 1.5)


class Load:
    """Requests that come in waves and bursts, and workers that are 1.3 times as slow as the profile says."""

    def __init__(self, seed: int, profile: profiles.Profile, per_s: float) -> None:
        self.random = random.Random(seed)
        self.profile = profile
        self.per_s = per_s
        self.prefill, self.decode = Pool(2), Pool(3)
        self.waiting = 0.0

    def look(self, now_s: float) -> Observation:
        """One interval's signals."""
        r, p = self.random, self.profile
        at_s = now_s - T0
        per_s = self.per_s * (1 + 0.6 * math.sin(at_s / 700) + (1.5 if 1500 < at_s < 1800 else 0.0))
        arrivals = float(max(1, round(per_s * STEP_S * r.uniform(0.8, 1.2))))
        tokens, squares = arrivals * round(r.uniform(700, 900)), arrivals * 1.4e6
        output = arrivals * round(r.uniform(180, 220))
        pp, dp = self.prefill.pods(now_s), self.decode.pods(now_s)
        work_s = 1.3 * p.prefill_work_s(arrivals, tokens, squares)
        use = work_s / STEP_S / max(1, pp.ready)
        self.waiting = max(0.0, self.waiting + arrivals * (1 - 1 / use)) if use > 1 else 0.7 * self.waiting
        made = output / STEP_S / p.decode_tokens_per_s(0.05, 1000.0) / max(1, dp.ready) * 1.3
        late, slow = (min(1.0, max(0.0, 3 * (u - 0.85))) for u in (use, made))
        running = float(round(output / STEP_S * 0.05))
        batches, steps = float(max(1, round(tokens / p.batch_tokens))), STEP_S / 0.05 * dp.ready
        return Observation(
            now_s, STEP_S,
            PrefillSignals(
                pp, arrivals, tokens, squares, round(self.waiting, 3), round(800 * self.waiting, 3), min(arrivals, pp.ready), work_s,
                arrivals, round(arrivals * (1 - late), 3), batches, tokens, squares,
                1.3 * (p.a_s * batches + p.b_s_per_token * tokens + p.c_s_per_token2 * squares), 1.0 if made < 1 else 0.4,
            ),
            DecodeSignals(
                dp, 0.0, running, 1000 * running, float(p.kv_tokens), output, arrivals, output, output + tokens,
                arrivals, round(arrivals * (1 - slow), 3), steps, steps * running / dp.ready, 1000 * steps * running / dp.ready,
                1.3 * steps * p.step_s(running / dp.ready, 1000 * running / dp.ready),
            ),
        )  # fmt: skip


def resource(name: str) -> Obj:
    found: Obj = yaml.safe_load((HERE / "corpus" / f"{name}.yaml").read_text())
    return found


def exact(value: Any) -> Any:
    """As JSON, with what JSON has no number for as text."""
    if isinstance(value, dict):
        return {key: exact(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [exact(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write(path: str, content: Any) -> None:
    file = OUT / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


async def predict(found: plan.Plan, load: Load, records: Records, cluster: Cluster, steps: range, entry: Live) -> None:
    """Some steps of the policy predictive in one operator process, whose decisions are carried out."""
    key = (found.resource.metadata.namespace, found.resource.metadata.name)
    clock = {"now_s": T0 + STEP_S * steps.start}
    forecasting = Forecasting(StateStore(cast(Any, cluster)), records, cast(Any, None), lambda: clock["now_s"])
    for i in steps:
        clock["now_s"] = now_s = T0 + STEP_S * i
        assert await forecasting.ready(key, entry, found.scaling)
        o = load.look(now_s)
        if i % 97 == 96:  # a scrape that nobody answered
            o = Observation(now_s, STEP_S, PrefillSignals(o.prefill.pods), DecodeSignals(o.decode.pods))
        outcome = await forecasting.step(
            key, entry, found.scaling, Folded(o, frozenset({"decode"} if i % 50 == 49 else ()))
        )
        for name, decision in outcome.decisions.items() if outcome is not None else ():
            (load.prefill if name == "prefill" else load.decode).resize(decision.to, now_s)
    entry.unsaved = True
    await forecasting._save(key, entry)


def saved(name: str, cluster: Cluster) -> None:
    """The ConfigMap, and the values that this release reads from it."""
    assert cluster.config_map is not None
    content = decode(cluster.config_map["data"]["state"])
    assert content is not None
    state = predictive.from_json(content["state"])
    write(
        f"scaling-state/{name}.json",
        {"configMap": cluster.config_map, "content": content, "state": exact(asdict(state))},
    )


async def scaling_states() -> None:
    """A busy hour, the same with workers that can't be placed, days that were read from Prometheus, and one that has seen nothing."""
    busy, cluster = plan.read(resource("29-predictive-every-field")), Cluster()
    load, entry = Load(1, busy.scaling.settings.profile, 80.0), Live(UID)
    entry.starts["decode"] = Starts({"pod-uid-1": 61.5, "pod-uid-2": 88.0})
    with tempfile.TemporaryDirectory() as folder:
        await predict(busy, load, Records(Path(folder)), cluster, range(290), entry)
        records, entry = (
            Records(Path(folder) / "kept"),
            Live(UID),
        )  # a new process, which reads the ConfigMap; a burst comes
        await predict(busy, load, records, cluster, range(290, 350), entry)
        write_records("predictive", records, ("default", "predictive"))
        await predict(busy, load, Records(Path(folder)), cluster, range(350, 600), entry)
        saved("busy", cluster)
        stuck = Cluster()
        flip = plan.read(resource("30-predictive-role-flip-on-cpu"))
        load = Load(2, flip.scaling.settings.profile, 3.0)
        load.decode.stuck_until_s = T0 + 1e9
        load.decode.resize(4, T0 - 900.0)
        await predict(flip, load, Records(Path(folder) / "flip"), stuck, range(300), Live(UID))
        saved("workers-that-can-not-be-placed", stuck)
        minutes = [
            history.Minute(T0 - 60.0 * i, n, 800.0 * n, 200.0 * n)
            for i in range(3 * 1440, 0, -1)
            if (n := daily(i)) > 0
        ]
        seeded, entry = Cluster(), Live(UID)
        entry.predicting = Predicting(history.seed(busy.scaling.settings, minutes))
        entry.loaded = True
        await predict(
            busy,
            Load(3, busy.scaling.settings.profile, 40.0),
            Records(Path(folder) / "seeded"),
            seeded,
            range(40),
            entry,
        )
        saved("days-before", seeded)
        nothing = Cluster()
        await predict(
            busy,
            Load(4, busy.scaling.settings.profile, 1.0),
            Records(Path(folder) / "none"),
            nothing,
            range(0),
            Live(UID),
        )
        saved("nothing", nothing)


def daily(minute: int) -> float:
    return float(max(0, round(2000 * (1 + 0.8 * math.sin(minute / 1440 * 2 * math.pi)) + 90 * math.sin(minute / 7))))


def queue_records() -> None:
    """The policy queue; its second run begins after a change of the resource."""
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder))
        queueing, entry = Queueing(records), Live(UID)
        for name, steps in (("04-quickstart", range(40)), ("32-queue-policy", range(40, 70))):
            found = plan.read(resource(name))
            load = Load(5, found.scaling.settings.profile, 2.0)
            for i in steps:
                now_s = T0 + STEP_S * i
                o = load.look(now_s)
                demand = {"prefill": 4 + 6 * math.sin(i / 6), "decode": 20 + 15 * math.sin(i / 9)}
                samples = {
                    pool: Sample(
                        now_s, None if i % 23 == 22 else round(max(0.0, n), 2), int(i % 17 == 16), i % 29 == 28
                    )
                    for pool, n in demand.items()
                }
                made = queueing.step(("default", "queue"), entry, found.scaling, o, samples)
                for pool, decision in made.items():
                    (load.prefill if pool == "prefill" else load.decode).resize(decision.to, now_s)
        write_records("queue", records, ("default", "queue"))


def write_records(name: str, records: Records, key: tuple[str, str]) -> None:
    (OUT / "records").mkdir(parents=True, exist_ok=True)
    (OUT / "records" / f"{name}.jsonl").write_bytes(b"".join(records.read(key)))


def statuses() -> None:
    """Statuses as they are stored, from the first to the last of one resource's life."""
    found = plan.read(resource("29-predictive-every-field") | {"metadata": {"name": "predictive", "generation": 4}})
    up = Decision(
        2,
        5,
        "ForecastAboveCapacity",
        "Forecast",
        4.125,
        0.0,
        "4.12 workers of work expected in 105 s",
        {"forecast": 4.125},
    )
    blind = Decision(5, 5, "MetricsUnavailable", "QueueDepth", None, 4.0)
    pull = Problem("ImagePull", "pod p: no such image")
    links = (
        WorkerLink("predictive-prefill-a", "prefill", "tcp", "eth0"),
        WorkerLink("predictive-decode-a", "decode", "rdma", "net1"),
    )
    steps: list[tuple[str, Decision | None, RouterView | None, Callable[[str], Workload], str]] = [
        ("2026-09-21T14:00:00Z", None, None, lambda n: Workload(n, 2), "r1-r2"),
        ("2026-09-21T14:05:00Z", up, RouterView(6, 6, links), lambda n: Workload(n, 2, 2, 2, 2, settled=True), "r1-r2"),
        (
            "2026-09-21T15:00:00Z",
            blind,
            RouterView(6, 4, links),
            lambda n: Workload(n, 5, 6, 5, 1, deadline_exceeded=True),
            "r3-r2",
        ),
        (
            "2026-09-21T16:00:00Z",
            up,
            RouterView(6, 0),
            lambda n: Workload(n, 5, problem=pull),
            "r3-r2",
        ),
    ]
    previous: Obj = {}
    out = []
    for now, decision, view, workload, revision in steps:
        stored = {p["name"]: p.get("lastDecision") for p in previous.get("pools", ())}
        pools = tuple(
            status.PoolIntent(
                role, workload(role).desired, "autoscaler", selector_text("predictive", role), True,
                decision is not None and decision.blind,
                decisions.last_decision(stored.get(role), decision, role == "decode", now),
            )
            for role in ("prefill", "decode")
        )  # fmt: skip
        observed = Observed(
            {role: workload(role) for role in ("prefill", "decode")}, workload("router"), Network(), view
        )
        previous = status.build(status.intent_of(found, pools, revision), observed, previous, now)
        out.append(previous)
    out.append(
        status.refused(5, "InvalidSpec", "spec.model.uri: uri must not contain ..", previous, "2026-09-21T17:00:00Z")
    )
    write("statuses.json", out)


def marks() -> None:
    """What `spec.replicas` and the mark of a pool lead to: its declaration, the pool as it is stored, and the answer of this release."""
    out = []
    for declared in (Declared(replicas=2), Declared(replicas=0), Declared(bounds=(3, 6))):
        for mark in (None, "2", "3", "suspended:2:5", "suspended:-:4", "suspended:2", "suspended:3:x"):
            for count in (2, 5):
                annotations = {} if mark is None else {"disagg.dev/declared-replicas": mark}
                writers = [
                    {"manager": m, "time": f"2026-09-21T14:0{i}:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
                    for i, m in enumerate(("disagg-operator", "kubectl", "keda-operator"))
                ]
                metadata = {
                    "name": "chat-decode",
                    "namespace": "default",
                    "annotations": annotations,
                    "managedFields": writers,
                }
                spec = {"deployment": "chat", "role": "decode", "replicas": count}
                pool = {"apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggPool", "metadata": metadata, "spec": spec}
                for wanted, suspended in ((None, False), (4, False), (None, True)):
                    answer = asdict(replicas.decide(declared, pool, wanted, suspended=suspended))
                    case = {"declared": asdict(declared), "pool": pool, "wanted": wanted, "suspended": suspended}
                    out.append(case | {"answer": answer})
    (OUT / "pools.jsonl").write_text("".join(json.dumps(case, separators=(",", ":")) + "\n" for case in out))


def main() -> None:
    OUT.mkdir(exist_ok=True)
    asyncio.run(scaling_states())
    queue_records()
    statuses()
    marks()
    measured = profiles.Profile(
        1, 0.00412, 0.000163, 2.1e-08, 0.00297, 0.000581, 1.04e-07, 40_960, 0.0, 2048, 64,
        0.0031, 0.0067, 0.05, 1740, 0.0019, 1.2e-06, 0.0014,
    )  # fmt: skip
    profiles.save(measured, OUT / "profile.json")


if __name__ == "__main__":
    main()
