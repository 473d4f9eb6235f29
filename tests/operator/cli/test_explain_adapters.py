"""`disagg explain` on decisions about workers of another engine.

A page of vLLM that was recorded, with other values, becomes the adapter's page, which the
autoscaler's loop reads over HTTP; its records are explained.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.adapter.rig import listening
from tests.operator.autoscaling.test_loop import Loop

from disagg_adapter.engines.prometheus_text import parse_samples
from disagg_adapter.metrics import Metrics as AdapterMetrics
from disagg_adapter.metrics import Snapshot
from disagg_adapter.work_done import WorkDone
from disagg_operator.autoscaling.records import decision_records
from disagg_operator.autoscaling.records.decision_records import Step
from disagg_operator.cli.entry import main
from disagg_operator.kube.resources import DISAGG_POOL, POD
from disagg_router.metrics import Metrics as RouterMetrics
from disagg_router.objectives import Objectives
from disagg_wire.engine_metrics.vllm import readings_of
from disagg_wire.labels import LABEL_COMPONENT, LABEL_DEPLOYMENT, LABEL_POOL, ROUTER
from disagg_wire.roles import DECODE, PREFILL, ROLES

RECORDED = (Path(__file__).parents[2] / "adapter" / "engines" / "vllm-0.32.0-metrics.txt").read_text()
STEP_S, PROMPT, OUTPUT, TTFT_S, TPOT_S = 5.0, 800, 100, 0.4, 0.02
CAPACITY = 40_000
QUIET, BUSY, STEPS = 2.0, 60.0, 24
"""Requests per second, and the number of looks at each load."""


@dataclass
class Worker:
    """An adapter's page over an engine whose own page says what happened."""

    role: str
    told: bool = True
    """Whether the engine tells its metrics."""
    values: dict[str, float] = field(default_factory=dict)
    work: WorkDone = field(default_factory=WorkDone)
    waiting: int = 0
    running: int = 0
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.metrics = AdapterMetrics(self.snapshot)

    def snapshot(self) -> Snapshot:
        page = RECORDED if self.told else ""
        for name, value in self.values.items():
            page, changed = re.subn(rf"^({re.escape(name)}\{{[^}}]*\}}) .*$", rf"\g<1> {value}", page, flags=re.M)
            assert changed == self.told
        readings = readings_of(parse_samples(page))
        totals = self.work.totals(readings, self.now_s, prefills=self.role == PREFILL, decodes=self.role == DECODE)
        waiting_tokens, kv = self.waiting * PROMPT, self.running * (PROMPT + OUTPUT // 2)
        return Snapshot(readings, totals, self.waiting, waiting_tokens, self.running, min(kv, CAPACITY), CAPACITY)

    def took(self, requests: int, now_s: float) -> None:
        """Count the work of an interval, in which these requests passed through."""
        self.now_s = now_s
        for i in range(requests):
            if self.role == PREFILL:
                self.work.prefill_began(str(i), PROMPT, now_s + 0.05 * i)
                self.work.prefill_ended(str(i), now_s + 0.05 * (i + 1), done=True)
            else:
                self.work.generated(OUTPUT, PROMPT + OUTPUT // 2)
        steps = STEP_S / TPOT_S if self.role == DECODE else requests
        grown = {
            "vllm:iteration_tokens_total_count": steps,
            "vllm:generation_tokens_total": requests * (OUTPUT if self.role == DECODE else 1),
            "vllm:inter_token_latency_seconds_count": requests * OUTPUT,
            "vllm:inter_token_latency_seconds_sum": requests * OUTPUT * TPOT_S,
        }
        for name, more in grown.items():
            self.values[name] = self.values.get(name, 0.0) + more


class Deployment:
    """A router and a worker of each pool, whose pages the loop of the operator reads."""

    def __init__(self, loop: Loop, folder: Path, told: bool, **scaling: Any) -> None:
        self.loop, self.folder = loop, folder
        loop.add("chat", engine={"type": "vllm"}, objectives={"ttftSeconds": {"p99": 1}}, scaling=scaling)
        self.router = RouterMetrics(Objectives(ttft_s=1.0, tpot_s=0.06))
        self.router.watch(lambda: dict.fromkeys(ROLES, 0), dict, dict)
        self.workers = {role: Worker(role, told) for role in ROLES}

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for component in (ROUTER, *ROLES):
                app = Starlette(routes=[Route("/metrics", self._page(component))])
                _, port = await stack.enter_async_context(listening(app))
                self._pod(component, port)
            yield

    def _page(self, component: str) -> Any:
        async def page(_: Request) -> Response:
            source = self.router if component == ROUTER else self.workers[component].metrics
            return Response(source.render(), media_type="text/plain")

        return page

    def _pod(self, component: str, port: int) -> None:
        pool = {} if component == ROUTER else {LABEL_POOL: component}
        labels = {LABEL_DEPLOYMENT: "chat", LABEL_COMPONENT: component} | pool
        # The container of the engine has no port that the operator reads.
        containers = [{"name": "main"}, {"name": "adapter", "ports": [{"name": "http", "containerPort": port}]}]
        status = {"podIP": "127.0.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        meta = {"name": f"chat-{component}", "namespace": "ns", "uid": component, "labels": labels}
        self.loop.cache.put(
            POD, {"kind": "Pod", "metadata": meta, "spec": {"containers": containers}, "status": status}
        )
        if pool:
            found = self.loop.cache.get(DISAGG_POOL, ("ns", f"chat-{component}"))
            assert found is not None
            self.loop.cache.put(DISAGG_POOL, found | {"spec": {"replicas": 1}})

    async def run(self, per_s: float, waiting: int, running: int) -> None:
        """Let the loop look at a number of intervals with this load."""
        requests = round(per_s * STEP_S)
        for _ in range(STEPS):
            for worker in self.workers.values():
                worker.took(requests, self.loop.now_s)
            self.workers[PREFILL].waiting, self.workers[DECODE].running = waiting, running
            for _ in range(requests):
                self.router.arrived(PROMPT)
                self.router.first_token(PROMPT, 0, TTFT_S)
                self.router.ended(PROMPT, OUTPUT, TPOT_S)
            await self.loop.loop.tick()
            self.loop.now_s += STEP_S

    def records(self) -> Path:
        return self.folder / "ns_chat.jsonl"

    def steps(self) -> list[Step]:
        return decision_records.steps_of(decision_records.read(self.records().read_text().splitlines()))


@contextlib.asynccontextmanager
async def recorded(folder: Path, told: bool = True, **scaling: Any) -> AsyncIterator[Deployment]:
    """Yield a deployment after a quiet and a busy time, with the records of its decisions."""
    loop = Loop(folder, timeout_s=60.0)  # of a page, however busy the machine is
    try:
        made = Deployment(loop, folder, told, **scaling)
        async with made.served():
            await made.run(QUIET, 0, 4)
            await made.run(BUSY, 60, 300)
        yield made
    finally:
        await loop.close()


def explained(records: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["explain", str(records), "--all"])
    assert ended.value.code in (0, None)
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("policy", ["predictive", "queue"])
async def test_decisions_about_adapters_are_explained(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with recorded(tmp_path, policy=policy) as made:
        last = made.steps()[-1]
        # What stands in the records is what the engine and its adapter counted.
        o = last.observation
        assert o.prefill.arrivals == pytest.approx(BUSY * STEP_S)
        assert o.decode.generated_tokens == pytest.approx(BUSY * STEP_S * OUTPUT)
        assert (o.prefill.waiting_requests, o.prefill.waiting_tokens) == (60, 60 * PROMPT)
        assert (o.decode.running_requests, o.decode.kv_capacity_tokens) == (300, CAPACITY)
        assert o.prefill.batch_tokens == pytest.approx(BUSY * STEP_S * PROMPT)
        assert o.decode.steps == pytest.approx(STEP_S / TPOT_S)
        assert o.decode.step_s == pytest.approx(STEP_S)
        assert all(last.decided[pool] > 1 for pool in ROLES)
        out = explained(made.records(), capsys)
    assert "0 of them without metrics" in out
    assert f"{BUSY:.0f} {BUSY * PROMPT:.0f} {BUSY * OUTPUT:.0f} 60+0 100 100 1/1 -> " in out
    assert "100.00 % of" in out
    assert "prefill: up" in out
    assert "decode: up" in out


async def test_what_an_engine_does_not_tell_is_a_question_mark_and_queues_scale_the_pools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with recorded(tmp_path, told=False, policy="queue") as made:
        last = made.steps()[-1]
        assert math.isnan(last.observation.decode.generated_tokens)
        assert math.isnan(last.observation.decode.step_s)
        assert all(last.decided[pool] > 1 for pool in ROLES)
        out = explained(made.records(), capsys)
    assert f"{BUSY:.0f} {BUSY * PROMPT:.0f} ? 60+0 100 100 1/1 -> " in out


async def test_predictions_need_the_generated_tokens_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with recorded(tmp_path, told=False, policy="predictive") as made:
        assert {pool: made.steps()[-1].decided[pool] for pool in ROLES} == {PREFILL: 1, DECODE: 1}
        out = explained(made.records(), capsys)
    assert f"? {BUSY * PROMPT:.0f} ? 60+0 100 100 1/1 1/1 no metrics: holding" in out
