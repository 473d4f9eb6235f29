"""Tests that both policies follow the load of workers whose engine is behind an adapter.

The pages are those that adapters and routers render.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.kube import FakeKube
from tests.operator.api.resources import of
from tests.operator.cli.test_explain_command import run

from disagg_adapter.metrics import Metrics as AdapterMetrics
from disagg_adapter.metrics import Snapshot
from disagg_adapter.work_done import WorkDone
from disagg_operator.autoscaling import chosen_policy
from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.guard import Outcome
from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.autoscaling.signals.collector import Collector, Pages, Scrape, Signals
from disagg_operator.autoscaling.signals.direct import DirectDoor
from disagg_operator.autoscaling.signals.policy_inputs import observe
from disagg_operator.autoscaling.signals.prometheus_query import PrometheusDoor
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.controller.acceptance import scale_plan
from disagg_operator.kube.pods import sort_pods
from disagg_operator.vocabulary import Obj
from disagg_router.metrics import Metrics as RouterMetrics
from disagg_router.objectives import Objectives
from disagg_wire.engine_metrics.readings import Readings
from disagg_wire.labels import LABEL_COMPONENT, LABEL_POOL, ROUTER

KEY, T0, EVERY_S = ("default", "chat"), 1_700_000_000.0, 5.0
PROMPT, OUTPUT, CAPACITY = 4000, 100, 500_000
POOL = {"autoscaling": {"minReplicas": 1, "maxReplicas": 9}}
# SGLang tells neither its steps nor some other counters, so no speed of decode is learned.
STEPS = {"steps", "step_sequences", "step_kv_tokens", "step_s"}
SGLANG = {"steps_total": math.nan, "preemptions_total": math.nan, "prompt_tokens_by_source": {}}


def pod(name: str, labels: dict[str, str]) -> Obj:
    meta = {"name": name, "uid": name, "labels": labels, "creationTimestamp": "2023-11-14T20:00:00Z"}
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2023-11-14T20:00:40Z"}
    return {"metadata": meta, "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": [ready]}}


PODS = sort_pods(
    [
        pod("r", {LABEL_COMPONENT: ROUTER}),
        *(pod(role[0], {LABEL_POOL: role}) for role in ("prefill", "decode")),
    ]
)


class Adapter:
    """The metrics of an adapter whose engine does the same work in every interval."""

    def __init__(self, role: str, untold: Mapping[str, Any]) -> None:
        self.prefills, self.untold = role == "prefill", untold
        self.done, self.readings, self.now_s = WorkDone(), self._told(0, 0), 0.0
        self.waiting, self.running = 0, 0
        self.metrics = AdapterMetrics(self._snapshot)
        self.metrics.info.info({"role": role})

    def _told(self, requests: int, steps: int) -> Readings:
        made = requests * (1 if self.prefills else OUTPUT)
        # Prefill generates one token of each sequence, so none follows another.
        itls = 0 if self.prefills else requests * (OUTPUT - 1)
        readings = Readings(
            started="1", waiting=0.0, running=0.0, kv_usage=0.1, prompt_tokens_total=float(requests * PROMPT),
            generated_tokens_total=float(made), cached_tokens_total=0.0, preemptions_total=0.0,
            steps_total=float(steps), itl_s_sum=itls * 0.02, itl_count=float(itls),
            prompt_tokens_by_source={"local_compute": float(requests * PROMPT)},
        )  # fmt: skip
        return replace(readings, **self.untold)

    def work(self, now_s: float, total: int, new: int) -> None:
        """Serve `new` requests until `now_s`, of `total` since the start."""
        began_s, self.now_s = self.now_s, now_s
        for n in range(new if self.prefills else 0):
            self.done.prefill_began(f"{now_s}-{n}", PROMPT, began_s + n * EVERY_S / new)
            self.done.prefill_ended(f"{now_s}-{n}", began_s + (n + 0.9) * EVERY_S / new, done=True)
        for _ in range(0 if self.prefills else new):
            self.done.generated(OUTPUT, PROMPT + OUTPUT // 2)
        self.readings = self._told(total, int(now_s * 40))
        self.waiting, self.running = 3 * new, 2 * new

    def _snapshot(self) -> Snapshot:
        work = self.done.totals(self.readings, self.now_s, prefills=self.prefills, decodes=not self.prefills)
        kv_tokens = self.running * PROMPT
        return Snapshot(self.readings, work, self.waiting, self.waiting * PROMPT, self.running, kv_tokens, CAPACITY)


class Site:
    """A router and a worker of each pool, with a load that doubles."""

    def __init__(self, untold: Mapping[str, Any]) -> None:
        self.router, self.outside = RouterMetrics(Objectives(1.0, 0.05)), {"prefill": 4, "decode": 2}
        self.router.watch(lambda: self.outside, dict, dict)
        self.adapters = {role: Adapter(role, untold) for role in ("prefill", "decode")}
        self.total = 0

    def pages(self, now_s: float, new: int) -> Pages:
        self.total += new
        for _ in range(new):
            self.router.arrived(PROMPT)
            self.router.first_token(PROMPT, 0, 0.5)
            self.router.ended(PROMPT, OUTPUT, 0.02)
        for adapter in self.adapters.values():
            adapter.work(now_s, self.total, new)
        found = {("r", "/metrics"): self.router.render().decode()}
        return found | {(role[0], "/metrics"): a.metrics.render().decode() for role, a in self.adapters.items()}


async def outcomes(policy: str, engine: str, untold: Mapping[str, Any], folder: Path) -> tuple[list[Outcome], Signals]:
    """Return what the policy decides as the autoscaler's loop asks it, and the last signals."""
    plan = scale_plan(of(engine, prefill=POOL, decode=POOL, scaling={"policy": policy}))
    assert plan is not None
    now_s = T0
    direct, prometheus = DirectDoor(), PrometheusSource(FakeKube(), PrometheusDoor(), lambda: now_s)
    collector, site, log = Collector(direct, prometheus, lambda: now_s), Site(untold), DecisionLog(folder)
    memory, found = PolicyMemory(), list[Outcome]()
    try:
        for step in range(60):
            now_s = T0 + EVERY_S * step
            scrape = Scrape(KEY, PODS, {"prefill": 1, "decode": 1}, {}, None, None)
            signals = await collector.signals_of(scrape, site.pages(EVERY_S * step, 40 if step < 30 else 80))
            seen = observe(signals.look, memory.counters, polled=False)
            outcome, memory = chosen_policy.step(plan, seen, memory)
            if outcome is not None:
                log.record(KEY, outcome, dry_run=False)
                found.append(outcome)
    finally:
        await direct.close()
        await prometheus.close()
    return found, signals


def unknown(signals: Any) -> set[str]:
    """Return the names of the signals that are NaN."""
    values = {f.name: getattr(signals, f.name) for f in fields(signals)}
    return {name for name, value in values.items() if isinstance(value, float) and math.isnan(value)}


@pytest.mark.parametrize(("engine", "untold", "not_learned"), [("vllm", {}, set()), ("sglang", SGLANG, STEPS)])
async def test_the_predictive_policy_sees_the_demand_of_both_pools(
    engine: str, untold: dict[str, Any], not_learned: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, signals = await outcomes("predictive", engine, untold, tmp_path)
    o, last = found[-1].observation, found[-1]
    assert (unknown(o.prefill), unknown(o.decode)) == ({"batch_share"}, not_learned)  # adapters hold nothing back
    assert (o.prefill.arrivals, o.prefill.prompt_tokens, o.decode.generated_tokens) == (80, 80 * PROMPT, 80 * OUTPUT)
    assert (o.prefill.waiting_requests, o.decode.waiting_requests) == (244, 242)  # the router's with them
    assert (o.prefill.waiting_tokens, o.prefill.running_requests) == (244 * PROMPT, 160)
    assert (o.decode.kv_tokens, o.decode.kv_capacity_tokens) == (160 * PROMPT, CAPACITY)
    assert o.prefill.batch_s == pytest.approx(o.prefill.busy_s) == pytest.approx(4.5)
    if not not_learned:
        assert (o.decode.steps, o.decode.step_s) == pytest.approx((200.0, 4.0))
    for outcome in found:
        assert not outcome.observation.blind
        told = {k: v for k, v in outcome.targets.numbers.items() if not math.isfinite(v)}
        assert set(told) <= {"prefill_missed_share", "decode_missed_share"}, told
    assert {pool: d.to > 1 for pool, d in last.decisions.items()} == {"prefill": True, "decode": True}
    assert signals.loads == {"p": 400.0, "d": 400.0}
    explained = run(capsys, "explain", tmp_path / "default_chat.jsonl")
    assert "244+242" in explained  # the requests that wait for each pool
    assert "nan" not in explained


@pytest.mark.parametrize(("engine", "untold"), [("vllm", {}), ("sglang", SGLANG)])
async def test_the_queue_of_each_pool_is_what_waits_and_runs_in_it(
    engine: str, untold: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = await outcomes("queue", engine, untold, tmp_path)
    last = found[-1]
    assert {pool: sample.requests for pool, sample in last.samples.items()} == {"prefill": 404.0, "decode": 402.0}
    assert {pool: d.to > 1 for pool, d in last.decisions.items()} == {"prefill": True, "decode": True}
    assert all(math.isfinite(value) for d in last.decisions.values() for value in d.numbers.values())
    explained = run(capsys, "explain", tmp_path / "default_chat.jsonl")
    assert "244+242" in explained
    assert "nan" not in explained
