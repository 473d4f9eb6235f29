"""Tests of the plan: the recommended kind of deployment, the crossover, and a published example."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.operator.planning.questions import question, traffic

from disagg_operator.performance.hardware import GPUS, NETWORKS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.profile import PROFILES
from disagg_operator.planning import report
from disagg_operator.planning.capacity import Infeasible
from disagg_operator.planning.deployment_plan import Deployment, Question, best_disaggregated, cost_of, make_plan
from disagg_operator.planning.traffic import LatencyObjectives, LogNormal, Traffic


def long_prompts(rate: float) -> Question:
    """Return a question in which two pools win from some rate on."""
    return question(traffic=traffic(rate, (4000, 16_000), (500, 2000)), ttft_s=4.0)


def test_at_low_load_one_pool_wins_and_at_high_load_two_do() -> None:
    low, high = make_plan(long_prompts(0.5)), make_plan(long_prompts(200))
    assert (low.recommended, high.recommended) == ("monolithic", "disaggregated")
    assert low.crossover_per_s == high.crossover_per_s
    assert low.crossover_per_s is not None
    assert 0.5 < low.crossover_per_s < 200
    assert "costs" in report.headline(low)
    assert "Crossover" in report.crossover(low)


def test_from_the_crossover_on_disaggregation_is_cheaper_at_every_rate() -> None:
    plan = make_plan(long_prompts(50))
    assert plan.crossover_per_s is not None
    above = [row for row in plan.rates if row[0] >= plan.crossover_per_s]
    assert all(apart < together for _, apart, together in above)
    below = [row for row in plan.rates if row[0] < plan.crossover_per_s]
    assert below
    assert below[-1][1] >= below[-1][2]


def test_where_only_two_pools_keep_the_objectives_they_are_cheaper_at_every_rate() -> None:
    """The first token of one pool also waits for the step of its streams."""
    p, asked = PROFILES["70b-h100-tp4"], traffic(1.0)
    alone_s = p.isolated_s(asked.prompt.tail)
    plan = make_plan(question(measured={"H100": [p]}, traffic=asked, ttft_s=alone_s + 1e-5))
    assert isinstance(plan.monolithic, Infeasible)
    assert plan.recommended == "disaggregated"
    assert plan.crossover_per_s == plan.rates[0][0]


def test_a_replica_that_computes_the_tail_prompt_too_slowly_is_left_out() -> None:
    found = best_disaggregated(question(ttft_s=0.3))
    assert isinstance(found, Deployment)
    assert [p.tensor for p in found.pools] == [8, 4]


def test_what_a_gpu_was_planned_by_is_said_with_its_source() -> None:
    notes = report.notes(make_plan(question()))
    assert (
        "H100: roof line, of 989 TFLOP/s bf16, 3.35 TB/s, 80 GB (https://www.nvidia.com/en-us/data-center/h100/)."
        in notes
    )
    measured = report.notes(make_plan(question(measured={"H100": [PROFILES["70b-h100-tp4"]]})))
    assert "H100: times of the given profile." in measured


def test_requests_that_the_model_does_not_take_are_told() -> None:
    long = make_plan(question("llama-2-70b", ttft_s=20.0, traffic=traffic(prompt=(2000, 8000))))
    assert "A request of tail lengths has 8800 tokens; the model takes 4096." in report.notes(long)
    assert not [
        n for n in report.notes(make_plan(question("llama-2-70b", traffic=traffic(prompt=(500, 2000))))) if "takes" in n
    ]


@pytest.mark.parametrize(("rate", "shown"), [(42.17, "42"), (177.8, "180"), (1334.0, "1300"), (0.23, "0.23")])
def test_a_rate_is_told_with_two_digits_and_no_exponent(rate: float, shown: str) -> None:
    assert report.rounded(rate) == shown


def test_loose_objectives_are_served_by_one_pool_at_any_rate() -> None:
    plan = make_plan(question(ttft_s=60.0, tpot_s=1.0))
    assert plan.recommended == "monolithic"


def test_equal_cost_goes_to_the_simpler_one() -> None:
    plan = make_plan(question("llama-3.1-8b", traffic=traffic(0.1)))
    assert cost_of(plan.monolithic) <= cost_of(plan.disaggregated)
    assert plan.recommended == "monolithic"


def test_what_only_two_pools_can_do() -> None:
    """A single chunk of a prompt delays an answer of 20 tokens too much.

    Even with 10,000 replicas some streams meet a chunk.
    """
    plan = make_plan(
        question(tpot_s=0.0305, traffic=traffic(1000, output=(20, 60)), measured={"H100": [PROFILES["70b-h100-tp4"]]})
    )
    assert isinstance(plan.monolithic, Infeasible)
    assert isinstance(plan.disaggregated, Deployment)
    assert plan.recommended == "disaggregated"
    assert "can't keep" in report.headline(plan)
    assert any(note.startswith("monolithic is infeasible: tpot") for note in report.notes(plan))


@pytest.mark.parametrize(
    ("change", "limit"),
    [({"ttft_s": 0.01}, "ttft"), ({"tpot_s": 0.001}, "tpot"), ({"gpus": "A10G"}, "memory")],
)
def test_infeasible_objectives_are_named(change: dict[str, object], limit: str) -> None:
    plan = make_plan(question(**change))  # type: ignore[arg-type]
    assert plan.recommended == "none"
    assert plan.chosen is None
    assert isinstance(plan.disaggregated, Infeasible)
    assert isinstance(plan.monolithic, Infeasible)
    assert plan.disaggregated.limit == plan.monolithic.limit == limit
    assert "Infeasible" in report.headline(plan)


def test_prices_decide_and_without_them_gpus_count() -> None:
    dear = make_plan(question(gpus="H100,A100", prices_per_hour={"H100": 100.0, "A100": 1.0}))
    chosen = dear.chosen
    assert chosen is not None
    assert {p.gpu.name for p in chosen.pools} == {"A100"}
    assert chosen.cost_per_hour == chosen.gpus
    plain = make_plan(question(gpus="H100,A100"))
    assert plain.chosen is not None
    assert plain.chosen.cost_per_hour == plain.chosen.gpus < chosen.gpus


def test_a_pool_may_be_kept_to_a_gpu() -> None:
    plan = make_plan(question(gpus="H100,A100", prefill_gpus=frozenset({"H100"}), decode_gpus=frozenset({"A100"})))
    assert isinstance(plan.disaggregated, Deployment)
    assert [p.gpu.name for p in plan.disaggregated.pools] == ["H100", "A100"]


def test_the_data_is_json_and_whole() -> None:
    data = json.loads(json.dumps(report.as_data(make_plan(question())), allow_nan=False))
    assert data["recommended"] == "monolithic"  # the chunks are computed while weights are read
    assert set(data["transfer_s"]) == set(NETWORKS)
    assert [p["role"] for p in data["deployments"]["disaggregated"]["pools"]] == ["prefill", "decode"]
    assert data["model"]["kv_bytes_per_token"] == 327_680
    infeasible = json.loads(json.dumps(report.as_data(make_plan(question(ttft_s=0.01))), allow_nan=False))
    assert infeasible["deployments"]["monolithic"]["limit"] == "ttft"


# ---- the published example: 480 tokens/s on 8 GPUs against 3,060 on 8 + 32 (docs/planning.md) ----

PUBLISHED = {"monolithic": (480.0, 8, 0.060, 0.60), "disaggregated": (3060.0, 40, 0.060, 0.85)}


def test_the_published_gain_per_gpu_is_1_3_and_not_6_4() -> None:
    (one, gpus_one, _, _), (two, gpus_two, _, _) = PUBLISHED["monolithic"], PUBLISHED["disaggregated"]
    assert two / one == pytest.approx(6.4, abs=0.05)
    assert (one / gpus_one, two / gpus_two) == pytest.approx((60.0, 76.5))
    assert (two / gpus_two) / (one / gpus_one) == pytest.approx(1.275)


def test_a_thousand_requests_a_second_at_3060_tokens_would_be_answers_of_3_tokens() -> None:
    assert pytest.approx(3.06) == 3060 / 1000
    # With answers of 200 tokens, 3,060 tokens/s are 15 requests/s; 1,000 requests/s are 200,000
    # tokens/s, 65 times as many.
    assert pytest.approx(15.3) == 3060 / 200
    assert pytest.approx(65.4, abs=0.1) == 1000 * 200 / 3060


def example(rate_per_s: float) -> Question:
    """Return the example of a 70B model on H100 and A100.

    All prompts have 400 tokens, for which 8 H100 have a TTFT of 25 ms, and all answers 200.
    """
    lengths = LogNormal(400, 0.0).lengths(0.99), LogNormal(200, 0.0).lengths(0.99)
    return Question(
        KNOWN["llama-3.1-70b"], Traffic(rate_per_s, *lengths), LatencyObjectives(0.5, 0.05),
        (GPUS["H100"], GPUS["A100"]), NETWORKS["rdma-100"],
        prefill_gpus=frozenset({"H100"}), decode_gpus=frozenset({"A100"}),
    )  # fmt: skip


def test_the_example_in_our_planner() -> None:
    """The plan has a fraction of 40 GPUs for 3,060 tokens/s, and many more for 1,000 requests/s."""
    small, large = make_plan(example(15.3)), make_plan(example(1000.0))
    assert isinstance(small.disaggregated, Deployment)
    assert isinstance(large.disaggregated, Deployment)
    assert small.disaggregated.gpus < 40 < large.disaggregated.gpus
    assert large.disaggregated.gpus > 300
    assert math.isfinite(cost_of(small.monolithic))
    assert small.recommended == "monolithic"


def test_the_example_in_the_document_is_this(pytestconfig: pytest.Config) -> None:
    text = (Path(pytestconfig.rootpath) / "docs" / "planning.md").read_text()
    for rate in (15.3, 1000.0):
        plan = make_plan(example(rate))
        cells = []
        for d in (plan.disaggregated, plan.monolithic):
            assert isinstance(d, Deployment)
            gpus = " + ".join(f"{p.gpus} {p.gpu.name}" for p in d.pools)
            cells.append(f"{gpus}: {200 * rate / d.gpus:.0f} tokens/s per GPU, TTFT {1e3 * d.ttft_s:.0f} ms")
        assert f"| {cells[0]} | {cells[1]} |" in text


def test_the_document_lists_every_gpu_as_it_is_planned(pytestconfig: pytest.Config) -> None:
    text = (Path(pytestconfig.rootpath) / "docs" / "planning.md").read_text()
    for g in GPUS.values():
        fp8 = "-" if g.fp8_flops is None else f"{g.fp8_flops / 1e12:.0f}"
        link = "PCIe" if g.link_bytes_per_s is None else f"{g.link_bytes_per_s / 1e9:.0f}"
        memory = f"{g.bandwidth_bytes_per_s / 1e12:.3g} | {g.memory_bytes / 1e9:.0f}"
        figures = f"{g.bf16_flops / 1e12:.0f} | {fp8} | {memory} | {link}"
        assert f"| {g.name} | {figures} | {g.source} |" in text


def test_25_ms_to_the_first_token_on_8_h100_is_a_prompt_of_a_few_hundred_tokens() -> None:
    """At 55 % of 8 x 989 TFLOP/s and 141 GFLOP per token, 8 GPUs compute 31,000 tokens/s."""
    shape = KNOWN["llama-3.1-70b"]
    per_s = 8 * 989e12 * 0.55 / (2 * shape.active_parameters)
    assert per_s == pytest.approx(31_000, rel=0.03)
    assert 0.025 * per_s == pytest.approx(775, rel=0.03)  # without any overhead
