"""A plan in words and as data says what was planned, by what, and what is not known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from tests.operator.planning.questions import estimated, question, traffic

from disagg_operator.performance.hardware import GPUS, NETWORKS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.profile import PROFILES, Profile
from disagg_operator.planning import report
from disagg_operator.planning.capacity import Infeasible, PoolPlan
from disagg_operator.planning.deployment_plan import Deployment, Plan, Question

TOO_SLOW = Infeasible("ttft", "a prompt takes too long")


def pool(role: str, profile: Profile = PROFILES["70b-h100-tp4"], gpu: str = "H100", **changes: Any) -> PoolPlan:
    return replace(PoolPlan(role, GPUS[gpu], profile, 2, 32, 0.5, "tpot"), **changes)


def deployment(*pools: PoolPlan, cost: float = 16.0, chunk_tokens: int = 0) -> Deployment:
    return Deployment(pools, 0.5, 0.04, 0.1, 0.02, cost, chunk_tokens)


APART = deployment(pool("prefill", batch=2048, bound="ttft"), pool("decode"))
ONE = deployment(pool("both", bound="ttft and tpot"), cost=8.0, chunk_tokens=512)


def plan(
    apart: Deployment | Infeasible = APART,
    together: Deployment | Infeasible = ONE,
    crossover: float | None = None,
    rates: tuple[tuple[float, float, float], ...] = ((0.1, 8.0, 4.0), (1000.0, 64.0, 32.0)),
    asked: Question | None = None,
) -> Plan:
    return Plan(asked or question(), apart, together, crossover, rates)


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-5, "20 us"), (0.0005, "500 us"), (0.0123, "12.3 ms"), (0.5, "500 ms"), (1.0, "1.00 s"), (12.345, "12.35 s")],
)
def test_a_time_has_the_unit_that_suits_it(value: float, text: str) -> None:
    assert report.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1.5e6, "1.5 MB"),
        (141e9, "141 GB"),
        (1.5e12, "1.5 TB"),
        (2e15, "2e+03 TB"),
    ],
)
def test_a_size_has_decimal_units(value: float, text: str) -> None:
    assert report.size(value) == text


@pytest.mark.parametrize(
    ("parameters", "text"), [(70.6e9, "70.6B"), (671e9, "671B"), (1.04e12, "1,040B"), (5.2e6, "5.2M"), (0.9996e9, "1B")]
)
def test_parameters_have_three_digits(parameters: float, text: str) -> None:
    assert report.billions(parameters) == text


def test_a_cost_is_in_the_currency_of_the_prices_or_in_gpus() -> None:
    assert report.money(plan(), 1234.0) == "1,234 GPU-hours/h"
    assert report.money(plan(asked=question(prices_per_hour={"H100": 2.5})), 1234.5) == "1,234.50 an hour"
    assert report.money(plan(), math.inf) == "-"


@pytest.mark.parametrize(
    ("apart", "together", "recommended", "words"),
    [
        (TOO_SLOW, TOO_SLOW, "Infeasible: ", "objectives"),
        (TOO_SLOW, ONE, "Recommended: monolithic. At 50 requests/s ", "infeasible"),
        (deployment(cost=8.0), ONE, "Recommended: monolithic. At 50 requests/s ", "costs the same and is simpler"),
        (APART, ONE, "Recommended: monolithic. At 50 requests/s ", "costs 50 % less"),
        (deployment(cost=6.0), ONE, "Recommended: disaggregated. At 50 requests/s ", "costs 25 % less"),
        (APART, TOO_SLOW, "Recommended: disaggregated. At 50 requests/s ", "can't keep the objectives"),
    ],
)
def test_the_headline_says_what_to_do_and_why(
    apart: Deployment | Infeasible, together: Deployment | Infeasible, recommended: str, words: str
) -> None:
    headline = report.headline(plan(apart, together))
    assert headline.startswith(recommended)
    assert words in headline


@pytest.mark.parametrize(("cost", "close"), [(7.1, False), (7.2, True), (8.0, True), (8.8, True), (9.0, False)])
def test_a_verdict_within_ten_percent_either_way_says_so(cost: float, close: bool) -> None:
    found = plan(deployment(*APART.pools, cost=cost), ONE)
    assert ("within 10 % of each other" in report.headline(found)) is close
    assert report.as_data(found)["within_10_percent"] is close
    assert not report.is_close(plan(TOO_SLOW, ONE))


INF = math.inf


def test_a_crossover_that_was_simulated_says_so_and_at_which_rates() -> None:
    rates = ((1.0, 2.0, 1.0), (10.0, 3.0, 4.0))
    for crossover, seen, words in (
        (10.0, rates, "cheaper from about 10 requests/s, simulated at 2 rates, 1 to 10 requests/s."),
        (1.0, rates[:1], "Disaggregation is cheaper, simulated at 1 requests/s."),
        (None, rates, "No crossover, simulated at 1 to 10 requests/s"),
    ):
        found = replace(plan(crossover=crossover), simulated_rates=seen, simulated=True)
        assert words in report.crossover(found)
        assert report.notes(found)[-1].endswith("the crossover is simulated, too.")
        assert len(report.as_data(found)["simulated_rates"]) == len(seen)


@pytest.mark.parametrize(
    ("crossover", "rates", "words"),
    [
        (None, ((0.1, INF, 1.0), (100.0, INF, INF)), ["infeasible at every rate"]),
        (None, ((0.1, INF, 1.0), (100.0, 5.0, 4.0)), ["No crossover up to 100 requests/s", "as cheap or cheaper"]),
        (0.1, ((0.1, 1.0, 2.0), (100.0, 5.0, 9.0)), ["cheaper at every rate from 0.1 to 100 requests/s"]),
        (
            12.34,
            ((0.1, 2.0, 1.0), (12.34, 3.0, 4.0), (100.0, 5.0, 9.0)),
            ["Crossover: ", "12 requests/s", "(up to 100)"],
        ),
    ],
)
def test_the_crossover_is_told_where_there_is_one(
    crossover: float | None, rates: tuple[tuple[float, float, float], ...], words: list[str]
) -> None:
    told = report.crossover(plan(crossover=crossover, rates=rates))
    assert [word for word in words if word not in told] == []


def test_the_notes_say_by_what_the_figures_were_made() -> None:
    notes = report.notes(plan(TOO_SLOW))
    assert notes[0] == "disaggregated is infeasible: ttft: a prompt takes too long."
    assert notes[1] == report.crossover(plan(TOO_SLOW))
    assert any(note.startswith("Without prices") for note in notes)
    assert f"H100: {report.roof_line(GPUS['H100'])}." in notes
    assert notes[-1] == "Sizes: queueing formulas; --simulate checks them request by request."


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (pool("prefill", utilisation=0.5), "prefill: the mean load needs 1 of 2 replicas; 1 is head-room for p99."),
        (
            pool("decode", replicas=10, utilisation=0.31, bound="network"),
            "decode: the mean load needs 4 of 10 replicas; 6 are interfaces of the network.",
        ),
        (
            pool("both", utilisation=0.51),
            "prefill + decode: the mean load needs 2 of 2 replicas; there is room for p99",
        ),
    ],
)
def test_each_count_says_what_the_mean_load_needs(made: PoolPlan, words: str) -> None:
    notes = report.notes(plan(TOO_SLOW, deployment(made)))
    assert any(note.startswith(words) for note in notes)
    data = report.as_data(plan(TOO_SLOW, deployment(made)))["deployments"]["monolithic"]["pools"][0]
    assert data["mean_load_replicas"] + data["headroom_replicas"] == made.replicas


def test_prices_measurements_and_a_simulation_are_told() -> None:
    asked = question(prices_per_hour={"H100": 2.5}, measured={"H100": [PROFILES["70b-h100-tp4"]]})
    notes = report.notes(replace(plan(asked=asked), simulated=True))
    assert "H100: times of the given profile." in notes
    assert not any("Without prices" in note for note in notes)
    assert notes[-1].startswith("Sizes: simulated, request by request")


def test_a_request_that_does_not_fit_is_told_once() -> None:
    small = replace(PROFILES["70b-h100-tp4"], kv_tokens=4000)
    notes = report.notes(
        plan(deployment(pool("prefill", small), pool("decode", small)), deployment(pool("both", small)))
    )
    told = "A request of tail lengths does not fit into one replica's cache: it would be refused."
    assert notes.count(told) == 1
    assert told not in report.notes(plan())


DEEP = estimated("deepseek-v3")


def experts(profile: Profile, batch: int, model: str = "deepseek-v3", role: str = "decode") -> list[str]:
    apart = deployment(pool("prefill", profile, "H200"), pool(role, profile, "H200", batch=batch))
    return report.of_experts(plan(apart, TOO_SLOW, asked=question(model, "H200")))


def test_a_model_without_experts_has_nothing_assumed_of_them() -> None:
    assert report.of_experts(plan()) == []


def test_it_is_told_how_many_experts_a_step_reads_and_where_the_line_is_wrong() -> None:
    words = experts(DEEP.around(256), 256)
    assert words[0].startswith("Experts: ")
    assert words[1].startswith("decode: a step of 256 sequences reads 100 % of the experts, one of 64 reads 87 %.")
    assert words[1].endswith(" at 256 and 10 % too slow at 64.")
    assert words[-1] == "The bundled engine does not serve such models: the plan is for another engine."


def test_of_a_single_sequence_there_are_no_fewer() -> None:
    assert experts(DEEP.around(1), 1)[1] == "decode: a step of 1 sequences reads 3 % of the experts."


def test_how_experts_and_latent_caches_are_split_is_told() -> None:
    spread = replace(DEEP, ranks=8)
    assert any(note.startswith("Parallel experts n") for note in experts(spread, 64))
    assert not any(note.startswith("Parallel tensor n") for note in experts(spread, 64))
    assert any(note.startswith("Parallel tensor n") for note in experts(DEEP, 64))
    assert not any(note.startswith("Parallel experts n") for note in experts(DEEP, 64))


def test_a_window_is_told_and_where_nothing_was_planned_no_step_is() -> None:
    found = report.of_experts(plan(TOO_SLOW, TOO_SLOW, asked=question("gpt-oss-120b", "H200")))
    assert [note.partition(":")[0] for note in found] == ["Windows", "The bundled engine does not serve such models"]


def test_the_roof_line_has_the_makers_figures_and_his_page() -> None:
    assert report.roof_line(GPUS["H200"]) == (
        "roof line, of 989 TFLOP/s bf16, 4.8 TB/s, 141 GB (https://www.nvidia.com/en-us/data-center/h200/)"
    )


@pytest.mark.parametrize(
    ("planned", "chunk_tokens", "cells"),
    [
        (APART.pools[0], 0, ["prefill", "8 x H100", "2 (1 + 1)", "tensor 4", "2,048 tokens", "50 %", "TTFT"]),
        (APART.pools[1], 0, ["decode", "8 x H100", "2 (1 + 1)", "tensor 4", "32 sequences", "50 %", "TPOT"]),
        (
            ONE.pools[0], 512,
            [
                "prefill + decode", "8 x H100", "2 (1 + 1)", "tensor 4", "32 seq., chunks of 512", "50 %",
                "TTFT and TPOT",
            ],
        ),
        (
            pool("decode", replace(DEEP, ranks=8), "H200"), 0,
            ["decode", "16 x H200", "2 (1 + 1)", "experts 8", "32 sequences", "50 %", "TPOT"],
        ),
    ],
)  # fmt: skip
def test_a_pool_is_a_row(planned: PoolPlan, chunk_tokens: int, cells: list[str]) -> None:
    assert report.pool_row(planned, chunk_tokens) == cells
    assert len(cells) == len(report.POOL_COLUMNS)


def test_a_deployment_is_a_row_and_an_infeasible_one_too() -> None:
    row = report.deployment_row(plan(), "disaggregated", APART)
    assert row == ["disaggregated", "16", "16 GPU-hours/h", f"{50 * 250 / 16:.1f}", "500 ms", "40 ms"]
    assert report.deployment_row(plan(), "monolithic", TOO_SLOW) == ["monolithic", "infeasible", "-", "-", "-", "-"]
    assert len(row) == len(report.DEPLOYMENT_COLUMNS)


def test_each_network_is_a_row_and_the_planned_one_is_marked() -> None:
    rows = report.transfers(plan())
    assert [row[0].removesuffix(" (planned)") for row in rows] == list(NETWORKS)
    assert [row[0] for row in rows if row[0].endswith(" (planned)")] == ["rdma-400 (planned)"]
    q = question()
    planned = next(row for row in rows if "planned" in row[0])
    tail = q.traffic.prompt.tail
    assert planned[1:] == [
        report.seconds(q.kv.alone_s(q.traffic.prompt.mean)), report.seconds(q.kv.alone_s(tail)),
        report.seconds(q.kv.exposed_s(tail, APART.pools[0].profile.isolated_s(tail))),
    ]  # fmt: skip
    assert {row[3] for row in report.transfers(plan(TOO_SLOW))} == {"-"}


def test_the_question_is_told_with_what_follows_from_it() -> None:
    rows = dict(report.question_rows(plan()))
    assert rows["model"] == "llama-3.1-70b: 80 layers, 64 heads, 8 KV heads, 16-bit weights"
    assert rows["weights"] == "141 GB, 70.6B parameters"
    assert rows["KV cache"] == "327,680 bytes a token; 328 MB for a mean prompt"
    assert rows["traffic"] == "50 requests/s, 50,000 prompt and 12,500 output tokens/s"
    assert rows["prompts"] == "1000 tokens, p99 4000"
    assert rows["objectives"] == "p99: TTFT 2.00 s, TPOT 50 ms"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "deepseek-v3",
            "61 layers, 128 heads, latent KV of 512 + 64, 8 of 256 experts and a shared one in 58 layers, "
            "8-bit weights",
        ),
        ("mixtral-8x7b", "32 layers, 32 heads, 8 KV heads, 2 of 8 experts in 32 layers, 16-bit weights"),
        (
            "gpt-oss-120b",
            "36 layers, 64 heads, 8 KV heads, 4 of 128 experts in 36 layers, 16-bit weights (4.25 bits in experts)",
        ),
    ],
)  # fmt: skip
def test_a_shape_is_told_in_figures(model: str, words: str) -> None:
    assert report.shape_words(KNOWN[model]) == words


def test_a_cache_that_forgets_is_told_with_what_it_grows_by() -> None:
    rows = dict(report.question_rows(plan(asked=question("gpt-oss-120b", "H200"))))
    assert " once more than 128 later ones came" in rows["KV cache"]
    assert "of them for a token" in rows["weights"]


def test_the_data_is_json_and_an_infinite_cost_is_null() -> None:
    spread = pool("decode", replace(DEEP, ranks=8), "H200")
    made = plan(deployment(spread), TOO_SLOW, 5.0, ((0.1, INF, 2.0), (10.0, 4.0, INF)), question("deepseek-v3", "H200"))
    data = json.loads(json.dumps(report.as_data(made), allow_nan=False))
    assert (data["recommended"], data["crossover_requests_per_s"]) == ("disaggregated", 5.0)
    assert data["rates"] == [
        {"requests_per_s": 0.1, "disaggregated": None, "monolithic": 2.0},
        {"requests_per_s": 10.0, "disaggregated": 4.0, "monolithic": None},
    ]
    assert data["deployments"]["monolithic"] == {
        "feasible": False,
        "limit": "ttft",
        "reason": "a prompt takes too long",
    }
    (found,) = data["deployments"]["disaggregated"]["pools"]
    assert (found["tensor_parallel"], found["expert_parallel"], found["gpus"]) == (1, 8, 16)
    assert set(data["transfer_s"]) == set(NETWORKS)


@pytest.mark.parametrize(("prices", "field"), [({}, "gpu_hours_per_hour"), ({"H100": 2.0}, "cost_per_hour")])
def test_the_data_names_the_cost_by_its_unit(prices: dict[str, float], field: str) -> None:
    data = report.as_data(plan(asked=question(prices_per_hour=prices)))["deployments"]["monolithic"]
    assert data[field] == 8.0
    (both,) = data["pools"]
    assert (both["tensor_parallel"], both["expert_parallel"], both["limited_by"]) == (4, 1, "ttft and tpot")


def test_requests_longer_than_the_context_are_told() -> None:
    asked = question("llama-2-70b", traffic=traffic(prompt=(2000, 8000)))
    assert report.notes(plan(asked=asked))[-1] == "A request of tail lengths has 8800 tokens; the model takes 4096."
