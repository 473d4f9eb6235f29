"""Tests of the advice, which compares what runs today with plans."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.operator.planning.assessment.test_bucket_counts import counted
from tests.operator.planning.assessment.test_interference import watched
from tests.operator.planning.assessment.test_request_load import log, read
from tests.operator.planning.questions import question, traffic

from disagg_operator.planning.assessment import comparison, interference, request_load
from disagg_operator.planning.assessment.bucket_counts import Between
from disagg_operator.planning.assessment.comparison import Attained, ServiceAssessment, Today, advice, remarks
from disagg_operator.planning.capacity import Infeasible
from disagg_operator.planning.deployment_plan import Deployment, make_plan
from disagg_operator.planning.traffic import LatencyObjectives

PLAN = make_plan(question(traffic=traffic(50.0)), 100.0)
KEPT = Attained(Between(0.99, 1.0), Between(0.995, 0.995), 0.99)
MISSED = Attained(Between(0.5, 0.6), None, 0.99)
UNKNOWN = interference.Interference("unknown", "nothing was seen", math.inf)


def deployment(gpus: int, cost: float | None = None) -> Deployment:
    assert isinstance(PLAN.monolithic, Deployment)
    pool = replace(PLAN.monolithic.pools[0], replicas=gpus // PLAN.monolithic.pools[0].profile.gpus)
    return replace(PLAN.monolithic, pools=(pool,), cost_per_hour=float(cost or gpus))


def assessment(apart: int | None, together: int | None, today: int | None = None, **changes: Any) -> ServiceAssessment:
    none = Infeasible("tpot", "it is too slow")
    plan = replace(
        PLAN,
        disaggregated=none if apart is None else deployment(apart),
        monolithic=none if together is None else deployment(together),
    )
    found = ServiceAssessment(
        source="http://a",
        engine="vllm",
        model="m",
        workload=request_load.of_readings(read(), 0.99),
        interference=UNKNOWN,
        attained=KEPT,
        today=None if today is None else Today(today // 4, 4, "H100", True, float(today)),
        plan=plan,
        least=None,
    )
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("found", "word", "sentence"),
    [
        (
            assessment(80, 40),
            "one-pool",
            "Stay with one pool: two pools would cost 80 GPU-hours/h (80 GPUs), one pool 40",
        ),
        (assessment(40, 40), "one-pool", "Stay with one pool"),
        (assessment(None, 40), "one-pool", "Stay with one pool: two pools are infeasible (tpot: it is too slow)."),
        (assessment(40, 80), "two-pools", "Move to two pools: they cost 40 GPU-hours/h (40 GPUs), and one pool would"),
        (
            assessment(76, 80),
            "one-pool",
            "Stay with one pool until `disagg profile` has measured it: two pools would cost 76",
        ),
        (assessment(76, 80, 70), "as-is", "Stay with what runs today"),
        (assessment(40, None), "two-pools", "and one pool is infeasible."),
        (assessment(40, 80, 60), "two-pools", "Move to two pools"),
        (
            assessment(40, 80, 40),
            "as-is",
            "Stay with what runs today: it costs 40 GPU-hours/h, and two pools would cost 40",
        ),
        (assessment(40, 80, 40, attained=MISSED), "two-pools", "Move to two pools"),
        (assessment(None, None), "infeasible", "No plan: no deployment on these GPUs meets the objectives."),
        (assessment(40, 80, plan=None), "unknown", "No plan: --model names the model to plan for."),
    ],
)
def test_advice(found: ServiceAssessment, word: str, sentence: str) -> None:
    got = advice(found)
    assert got[0] == word
    assert sentence in got[1]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (assessment(76, 80), "Both plans are within 10 %"),
        (assessment(40, 80, least="monolithic"), "With the lower ends of the lengths, one pool would be cheaper"),
        (assessment(80, 40, least="disaggregated"), "With the lower ends of the lengths, two pools would be cheaper"),
        (assessment(80, 40, 24), "Today's 24 GPUs keep the objectives, and 40 are planned"),
        (assessment(80, 40, 80), "Today's 80 GPUs cost 40 GPU-hours/h more than the planned 40."),
        (assessment(80, 40), "percentiles are between two bounds"),
        (assessment(80, 40), "a prefix cache that holds 50 % of the prompt tokens"),
        (assessment(80, 40, workload=log(20, 600, batch=10)), "Requests come in bursts (dispersion "),
        (
            assessment(40, 80, interference=interference.judge(read(windows=watched(0.0)), 0.01)),
            "Prefill does not disturb decode today and the objectives are kept",
        ),
    ],
)
def test_remarks(found: ServiceAssessment, words: str) -> None:
    assert [line for line in remarks(found) if words in line]


@pytest.mark.parametrize(
    "found",
    [
        assessment(40, 80),
        assessment(40, 80, least="disaggregated"),
        assessment(40, 80, least="none"),
        assessment(None, None, 40),
        assessment(80, 40, 40, workload=log(20, 600)),
        assessment(80, 40, plan=None),
    ],
)
def test_nothing_is_remarked_where_nothing_is(found: ServiceAssessment) -> None:
    text = " ".join(remarks(found))
    for words in (
        "within 10 %",
        "lower ends",
        "does not disturb",
        "bursts",
        "keep the objectives",
        "more than the planned",
    ):
        assert words not in text


def test_what_is_kept_today_is_only_said_where_buckets_tell() -> None:
    objectives = LatencyObjectives(1.0, 0.05)
    ttft, tpot = counted([0.9] * 99 + [30.0]), counted([0.9], (0.04, 0.06, math.inf))
    found = comparison.attained(ttft, tpot, objectives)
    assert found.ttft == Between(0.99, 0.99)
    assert found.tpot == Between(0.0, 0.0)
    assert found.kept == "no"
    assert comparison.attained(ttft, counted([0.05], (0.04, 0.06, math.inf)), objectives).kept == "unknown"
    assert comparison.attained(ttft, counted([0.03], (0.04, 0.06, math.inf)), objectives).kept == "yes"
    assert comparison.attained(ttft, None, objectives).kept == "unknown"
    assert comparison.attained(None, None, objectives) == Attained(None, None, 0.99)


def test_the_plan_with_the_lower_ends() -> None:
    assert comparison.kind_at_least(PLAN, log(20, 600)) is None
    assert comparison.kind_at_least(PLAN, request_load.of_readings(read(), 0.99)) in ("monolithic", "disaggregated")


def test_words() -> None:
    yes = interference.judge(read(windows=watched(10e-6)), 0.01)
    assert comparison.interference_words(yes).startswith("Prefill disturbs decode: at ")
    assert " % take over 50 ms; at " in comparison.interference_words(yes)
    assert (
        comparison.interference_words(UNKNOWN) == "It is not known whether prefill disturbs decode: nothing was seen."
    )
    alike = replace(yes, verdict="unknown", why="as always")
    assert comparison.interference_words(alike).startswith(
        "It is not known whether prefill disturbs decode (as always): at"
    )
    assert comparison.between(Between(5.0, 5.0)) == "5"
    assert comparison.between(Between(1000.0, 2000.0)) == "1,000 to 2,000"
    assert comparison.between(Between(1000.0, math.inf)) == "over 1,000"
    assert comparison.share_words(None) == "not known"
    assert comparison.share_words(Between(0.5, 0.5)) == "50.00 %"
    assert comparison.share_words(Between(0.5, 0.75)) == "50.00 to 75.00 %"
