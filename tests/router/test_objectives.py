"""Tests of the objectives that are met and of the arrivals, which the router counts for the
autoscaler.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.fakes.token_worker import TokenWorker
from tests.router.stack import MODEL, Stack

from disagg_router.metrics import Metrics
from disagg_router.objectives import Objectives


def page(metrics: Metrics) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in metrics.render().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_a_long_prompt_may_take_five_times_what_it_takes_alone() -> None:
    objectives = Objectives(1.0, 0.05, (0.1, 0.001, 0.0))
    assert objectives.ttft_limit_s(50) == 1.0
    assert objectives.ttft_limit_s(1900) == pytest.approx(10.0)
    assert Objectives().ttft_limit_s(1900) is None


def test_cached_tokens_are_taken_off_and_squares_are_of_each_request() -> None:
    metrics = Metrics(Objectives(1.0, 0.05))
    for prompt, cached in ((10, 4), (20, 20)):
        metrics.arrived(prompt)
        metrics.first_token(prompt, cached, 0.5)
    found = page(metrics)
    assert found["disagg_router_arrivals_total"] == 2
    assert found["disagg_router_arrived_prompt_tokens_total"] == 30
    assert found["disagg_router_arrived_prompt_tokens_squared_total"] == 500
    assert found['disagg_router_prefilled_tokens_total{part="prompt"}'] == 30
    assert found['disagg_router_prefilled_tokens_total{part="uncached"}'] == 6 + 1  # the last token is always computed
    assert found['disagg_router_prefilled_tokens_squared_total{part="uncached"}'] == 36 + 1


def test_what_decode_prefills_because_little_is_missing_is_no_work_for_prefill() -> None:
    metrics = Metrics(Objectives(1.0, 0.05, (0.0, 0.1, 0.0)))
    metrics.first_token(100, 90, 2.0, few_missing=True)
    found = page(metrics)
    assert found['disagg_router_prefilled_tokens_total{part="prompt"}'] == 100
    assert found['disagg_router_prefilled_tokens_total{part="uncached"}'] == 0
    assert found['disagg_router_prefilled_tokens_squared_total{part="uncached"}'] == 0
    requests = 'disagg_router_prefilled_requests_total{part="%s"}'
    assert (found[requests % "prompt"], found[requests % "uncached"]) == (1, 0)
    assert found['disagg_router_objective_requests_total{objective="ttft",within="true"}'] == 1  # 5 x 10 x 0.1 s


def test_what_is_not_asked_for_is_not_counted() -> None:
    metrics = Metrics()
    metrics.first_token(10, 0, 99.0)
    metrics.ended(10, 5, 99.0)
    metrics.failed(has_first=False)
    assert not [name for name in page(metrics) if "objective" in name]


async def ask(stack: Stack, **more: object) -> int:
    body = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0, "ignore_eos": True} | more
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        return (await http.post(f"{stack.url}/v1/completions", json=body)).status_code


def workers() -> tuple[TokenWorker, TokenWorker]:
    return TokenWorker("p", "prefill"), TokenWorker("d", "decode")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_counted_from_arrival_to_its_end(tmp_path: Path, stream: bool) -> None:
    async with Stack(tmp_path, *workers(), objective_ttft_s=30, objective_tpot_s=0.0000001) as stack:
        assert await ask(stack, stream=stream, n=2) == 200
        found = page(stack.router.metrics)
    assert found["disagg_router_arrivals_total"] == 2
    assert found["disagg_router_completions_total"] == 2
    assert found['disagg_router_completed_tokens_total{kind="output"}'] == 8
    assert found['disagg_router_completed_tokens_total{kind="context"}'] == 2 * (3 + 4)
    assert found['disagg_router_objective_requests_total{objective="ttft",within="true"}'] == 2
    assert found['disagg_router_objective_requests_total{objective="ttft",within="false"}'] == 0
    assert found['disagg_router_objective_requests_total{objective="tpot",within="false"}'] == 2


async def test_a_request_that_failed_kept_no_objective_and_a_wrong_one_is_not_counted(tmp_path: Path) -> None:
    async with Stack(tmp_path, *workers(), objective_ttft_s=30, objective_tpot_s=30, queue_max_wait_s=0.2) as stack:
        assert await ask(stack, prompt=[]) == 400
        for worker in stack.workers:
            await worker.stop()
        assert await ask(stack) >= 500
        found = page(stack.router.metrics)
    assert found['disagg_router_objective_requests_total{objective="ttft",within="false"}'] == 1
    assert found["disagg_router_arrivals_total"] == 1
    assert found["disagg_router_completions_total"] == 0


def test_objectives_that_are_the_same_for_prompts_of_any_length() -> None:
    patient = Objectives(1.0, 0.1, (0.1, 0.01, 0.0))
    assert patient.ttft_limit_s(1000) == pytest.approx(50.5)
    assert patient.without_patience().ttft_limit_s(1000) == 1.0
    assert patient.without_patience().tpot_s == 0.1
