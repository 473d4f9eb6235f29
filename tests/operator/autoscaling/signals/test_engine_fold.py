"""Engines of other projects are observed by their own metrics, without a router that counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.fakes.engine_fleet import EngineFleet, EnginePod

from disagg_operator.autoscaling import chosen_policy
from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.policy.observation import Observation, Pods
from disagg_operator.autoscaling.policy.predictive import PoolLimits, Settings
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.engine_fold import (
    EngineLook,
    EngineMemory,
    EngineReport,
    Reports,
    observe_engines,
)
from disagg_operator.autoscaling.signals.engine_reports import report_of_page
from disagg_operator.autoscaling.signals.policy_inputs import Seen
from disagg_operator.engines import BY_NAME
from disagg_operator.performance.profile import Profile
from disagg_wire.engine_metrics.readings import PoolReadings, Readings
from disagg_wire.engine_metrics.sample_table import Distribution, Samples
from disagg_wire.engine_metrics.vllm import pool_readings_of

ENGINES = ["vllm", "sglang"]


class Watching:
    """Looks at a fleet every 15 s."""

    def __init__(self, engine: str, fleet: EngineFleet, prefill: int = 2, decode: int = 2) -> None:
        self.engine, self.fleet, self.memory = engine, fleet, EngineMemory()
        self.silent: set[str] = set()
        fleet.add("prefill", *(f"p-{i}" for i in range(prefill)))
        fleet.add("decode", *(f"d-{i}" for i in range(decode)))

    def look(self, *, polled: bool = False) -> Seen:
        found, self.memory = observe_engines(self.seen(), self.memory, polled=polled)
        return found

    def seen(self) -> EngineLook:
        fleet = self.fleet
        prefill, decode = (Pods(len(fleet.pods[role]), len(fleet.pods[role])) for role in ("prefill", "decode"))
        return EngineLook(fleet.now_s, self.reports("prefill"), self.reports("decode"), prefill, decode, 1.0, 0.06)

    def reports(self, role: str) -> Reports:
        metrics = BY_NAME[self.engine].meter
        assert metrics is not None
        return {
            name: None
            if name in self.silent
            else report_of_page(metrics, self.fleet.page(self.engine, role, name), self.fleet.now_s)
            for name in self.fleet.pods[role]
        }

    def after(self, seconds: float, rate: float) -> Observation:
        """Look every 15 s, and return the last observation."""
        for _ in range(round(seconds / 15)):
            self.fleet.advance(15, rate)
            seen = self.look()
        return seen.folded.observation


@pytest.fixture(params=ENGINES)
def watching(request: pytest.FixtureRequest) -> Watching:
    return Watching(request.param, EngineFleet())


def test_the_first_look_knows_no_increase(watching: Watching) -> None:
    watching.fleet.advance(60, 5)
    seen = watching.look()
    assert seen.first
    assert seen.folded.observation.blind


def test_work_and_objectives_are_known_from_the_second_look_on(watching: Watching) -> None:
    watching.look()
    o = watching.after(60, 5)
    p, d = o.prefill, o.decode
    assert o.interval_s == 15
    assert p.arrivals == pytest.approx(75, rel=0.02)
    assert p.prompt_tokens == pytest.approx(75_000, rel=0.02)
    assert p.prompt_tokens_squared == pytest.approx(75e6, rel=0.6)  # as well as the buckets tell it
    assert [p.ttft_total, p.ttft_ok] == pytest.approx([75, 75])
    assert d.generated_tokens == pytest.approx(75 * 200)
    assert [d.completions, d.completed_output_tokens] == pytest.approx([75, 75 * 200])
    assert d.completed_context_tokens == pytest.approx(75 * 1200)
    assert [d.tpot_total, d.tpot_ok] == pytest.approx([75, 75], rel=0.01)
    assert d.running_requests == pytest.approx(5 * 200 * 0.03)
    assert d.kv_capacity_tokens == 400_000
    assert not watching.look().folded.partial


def test_only_what_is_not_cached_counts_as_work() -> None:
    for engine in ENGINES:
        watching = Watching(engine, EngineFleet(computed=250.0))
        watching.look()
        p = watching.after(60, 5).prefill
        assert p.prompt_tokens == pytest.approx(75 * 250, rel=0.02)
        assert p.prompt_tokens_squared == pytest.approx(75 * 250**2, rel=0.6)


def test_requests_that_wait_have_arrived(watching: Watching) -> None:
    watching.look()
    watching.after(60, 5)
    o = watching.after(30, 40)  # the two pods compute 20 a second
    assert o.prefill.arrivals == pytest.approx(600, rel=0.05)
    assert o.prefill.waiting_requests == pytest.approx(600, rel=0.1)
    assert o.prefill.waiting_tokens == pytest.approx(600_000, rel=0.1)
    assert o.prefill.ttft_ok < 0.2 * o.prefill.ttft_total


def test_a_cancelled_request_is_no_restart(watching: Watching) -> None:
    watching.look()
    watching.after(60, 20)
    watching.fleet.queues["prefill"] = 0.0
    for pod in watching.fleet.pods["prefill"].values():
        pod.waiting, pod.running = 0.0, 0.0  # what ran was cancelled and is in no counter
    watching.fleet.now_s += 15
    assert watching.look().folded.observation.prefill.arrivals == 0
    assert watching.after(15, 4).prefill.arrivals <= 60


def test_an_engine_that_began_anew_counts_from_zero(watching: Watching) -> None:
    watching.look()
    watching.after(300, 10)
    watching.fleet.add("prefill", "p-0")  # the same name, and a new process
    assert 75 <= watching.after(15, 10).prefill.arrivals <= 160
    assert watching.after(15, 10).prefill.arrivals == pytest.approx(150, rel=0.02)


def test_others_stand_for_a_pod_that_does_not_answer(watching: Watching) -> None:
    watching.look()
    watching.after(60, 5)
    watching.silent = {"p-0"}
    watching.fleet.advance(15, 5)
    folded = watching.look().folded
    assert folded.partial == {"prefill"}
    assert folded.observation.prefill.arrivals == pytest.approx(75, rel=0.02)
    watching.silent = {"p-0", "p-1"}
    watching.fleet.advance(15, 5)
    assert watching.look().folded.observation.blind


def test_a_pod_that_has_never_answered_is_one_of_those_that_others_stand_for(watching: Watching) -> None:
    watching.silent = {"p-0", "d-0"}
    watching.look()
    watching.fleet.advance(15, 5)
    folded = watching.look().folded
    assert folded.partial == {"prefill", "decode"}
    assert folded.observation.prefill.arrivals == pytest.approx(75, rel=0.1)


def test_what_has_arrived_is_unknown_where_an_engine_does_not_tell_what_it_holds() -> None:
    fleet, memory = EngineFleet(), EngineMemory()
    for _ in range(3):
        fleet.now_s += 15
        reports: Reports = {"p": EngineReport(fleet.now_s, PoolReadings(Readings(), finished_total=5.0))}
        look = EngineLook(fleet.now_s, reports, {}, Pods(1, 1), Pods(1, 1), 1.0, 0.06)
        seen, memory = observe_engines(look, memory, polled=False)
    assert seen.folded.observation.blind
    assert math.isnan(seen.folded.observation.decode.generated_tokens)


def test_without_a_pod_nobody_knows_what_arrives(watching: Watching) -> None:
    watching.look()
    watching.after(30, 5)
    watching.fleet.pods["prefill"].clear()
    watching.fleet.now_s += 15
    o = watching.look().folded.observation
    assert o.blind
    assert math.isnan(o.prefill.prompt_tokens)


def test_after_a_gap_the_counters_start_afresh(watching: Watching) -> None:
    watching.look()
    watching.after(30, 5)
    watching.fleet.advance(600, 5)
    assert watching.look().folded.observation.blind
    assert watching.after(15, 5).prefill.arrivals == pytest.approx(75, rel=0.02)


def test_a_prometheus_that_has_scraped_nothing_new_makes_no_step(watching: Watching) -> None:
    watching.fleet.advance(15, 5)
    look = watching.seen()
    _, memory = observe_engines(look, EngineMemory(), polled=True)
    seen, memory = observe_engines(replace(look, now_s=look.now_s + 15), memory, polled=True)
    assert not seen.fresh
    watching.fleet.advance(30, 5)
    seen, _ = observe_engines(watching.seen(), memory, polled=True)
    assert seen.fresh
    assert seen.folded.observation.prefill.arrivals == pytest.approx(150, rel=0.02)


def told(pod: EnginePod) -> PoolReadings:
    """Return what vLLM's page of a pod tells, without the page."""
    table = {
        "vllm:num_requests_waiting": pod.waiting,
        "vllm:num_requests_running": pod.running,
        "vllm:kv_cache_usage_perc": pod.kv_share,
        "vllm:generation_tokens_total": pod.output_tokens,
        "vllm:iteration_tokens_total_count": pod.steps,
        "vllm:request_success_total": pod.finished,
        "vllm:request_prompt_tokens_sum": pod.prompt_tokens,
        "vllm:request_generation_tokens_sum": pod.output_tokens,
        "vllm:request_prefill_time_seconds_sum": pod.prefill_s,
        "vllm:inter_token_latency_seconds_sum": pod.gap_s,
        "vllm:inter_token_latency_seconds_count": pod.output_tokens,
    }
    found = pool_readings_of(Samples({name: [({}, value)] for name, value in table.items()}))
    late = sum(n for seconds, n in pod.ttft.items() if seconds > 1.0)
    slow = sum(n for seconds, n in pod.tpot.items() if seconds > 0.06)
    ttft, tpot = (
        Distribution((limit, math.inf), (sum(seen.values()) - n, n), 0.0)
        for limit, seen, n in ((1.0, pod.ttft, late), (0.06, pod.tpot, slow))
    )
    engine = replace(found.engine, started=str(pod.started_s))
    return replace(found, engine=engine, kv_capacity_tokens=400_000.0, ttft=ttft, tpot=tpot)


def test_pools_of_others_follow_a_burst_and_forget_it() -> None:
    """From 2 to 30 requests a second and back; the profile is wrong by a factor of 2."""
    fleet, engines, memory = EngineFleet(), EngineMemory(), PolicyMemory()
    fleet.add("prefill", "p-first")
    fleet.add("decode", "d-first")
    limits, rules = PoolLimits(1, 12), PoolRules(1, 12, 1.0)
    profile = Profile(1, 0.02, 0.2e-3, 0.0, 0.05, 0.3e-3, 1e-8, 400_000, max_running=64)
    plan = ScalePlan({"prefill": rules, "decode": rules}, Settings(profile, 0.06, limits, limits))
    sizes: dict[int, dict[str, int]] = {}
    needed: dict[int, dict[str, float]] = {}
    late = 0
    for i in range(260):  # an hour
        fleet.advance(15, 30.0 if 60 <= i < 160 else 2.0, step_s=5.0)
        late += fleet.queues["prefill"] > 40
        reports = [
            {n: EngineReport(fleet.now_s, told(pod)) for n, pod in fleet.pods[role].items()}
            for role in ("prefill", "decode")
        ]
        pods = [Pods(len(fleet.pods[role]), len(fleet.pods[role]), cold_start_s=15.0) for role in ("prefill", "decode")]
        look = EngineLook(fleet.now_s, reports[0], reports[1], pods[0], pods[1], ttft_s=1.0, tpot_s=0.06)
        seen, engines = observe_engines(look, engines, polled=False)
        outcome, memory = chosen_policy.step(plan, seen, memory)
        if outcome is None:
            continue
        needed[i] = outcome.targets.numbers
        for role, decision in outcome.decisions.items():
            held = fleet.pods[role]
            while len(held) > decision.to:
                held.pop(next(reversed(held)))
            fleet.add(role, *(f"{role}-{i}-{n}" for n in range(decision.to - len(held))))
        sizes[i] = {role: len(held) for role, held in fleet.pods.items()}
    # The fleet needs 3 prefill pods and 2.8 decode pods in the burst, whatever the profile says.
    assert needed[155]["prefill_demand"] == pytest.approx(3.0, rel=0.1)
    assert needed[155]["decode_demand"] == pytest.approx(2.8, rel=0.1)
    assert min(sizes[75].values()) >= 3
    assert max(sizes[259].values()) <= 2
    assert late <= 4
