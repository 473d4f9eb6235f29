"""The pages of engines, and what a Prometheus kept of them, are read alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.engine_fleet import EngineFleet

from disagg_operator.autoscaling.signals.engine_reports import report_of_page, reports_of_matrix
from disagg_operator.autoscaling.signals.prometheus_query import pods_query
from disagg_operator.engines import BY_NAME
from disagg_operator.engines.contract import EngineMeter

RECORDED = Path(__file__).parents[3] / "adapter/engines/vllm-0.32.0-metrics.txt"


def metrics(engine: str) -> EngineMeter:
    found = BY_NAME[engine].meter
    assert found is not None
    return found


def test_a_page_that_a_real_engine_served_says_what_is_needed() -> None:
    found = report_of_page(metrics("vllm"), RECORDED.read_text(), 5.0)
    assert found is not None
    r = found.readings
    assert (found.at_s, r.engine.waiting, r.engine.running, r.finished_total) == (5.0, 0, 0, 1)
    assert (r.finished_prompt_tokens_total, r.finished_output_tokens_total) == (69, 8)
    assert r.kv_capacity_tokens > 0
    assert r.prefill_s_total == pytest.approx(0.2285, abs=0.001)
    assert math.isnan(r.prompt_lengths.number)  # the recorded page has no buckets


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_prometheus_tells_the_same_as_the_page(engine: str, role: str) -> None:
    fleet = EngineFleet()
    fleet.add("prefill", "p")
    fleet.add("decode", "d")
    fleet.advance(60, 3)
    name = {"prefill": "p", "decode": "d"}[role]
    page = fleet.page(engine, role, name)
    direct = report_of_page(metrics(engine), page, 100.0)
    assert direct is not None
    matrix = [series(line, name) for line in page.splitlines() if not line.startswith("#")]
    # The texts, because what is not known is equal to nothing.
    assert repr(reports_of_matrix(metrics(engine), matrix, 120.0, 75.0)[name]) == repr(direct)


def series(line: str, pod: str) -> dict[str, Any]:
    head, _, value = line.rpartition(" ")
    name, _, rest = head.partition("{")
    pairs = (part.split("=") for part in rest.rstrip("}").split(",") if part)
    labels = {key: text.strip('"') for key, text in pairs}
    return {"metric": {"__name__": name, "pod": pod, **labels}, "values": [[90, "0"], [100.0, value]]}


@pytest.mark.parametrize(
    "bad", [7, {}, {"metric": {}, "values": []}, {"metric": {"pod": "p"}, "values": [[1, "x"]]}, None]
)
def test_a_series_that_is_none_is_left_out(bad: Any) -> None:
    assert reports_of_matrix(metrics("vllm"), [bad], 100.0, 75.0) == {}


def test_an_old_series_has_ended() -> None:
    old = {"metric": {"__name__": "vllm:num_requests_waiting", "pod": "p"}, "values": [[10, "3"]]}
    new = {"metric": {"__name__": "vllm:num_requests_running", "pod": "p"}, "values": [[90, "4"]]}
    found = reports_of_matrix(metrics("vllm"), [old, new], 100.0, 75.0)["p"].readings.engine
    assert math.isnan(found.waiting)
    assert found.running == 4
    assert reports_of_matrix(metrics("vllm"), [old], 100.0, 75.0) == {}


@pytest.mark.parametrize(
    "page", ["", "other 1", "vllm:num_requests_waiting{", "vllm:num_requests_waiting x", "\n" * 200_000]
)
def test_a_page_that_says_nothing_is_unknown(page: str) -> None:
    assert report_of_page(metrics("vllm"), page, 0.0) is None


def test_a_page_with_far_too_many_samples_is_not_read() -> None:
    page = "\n".join(f'vllm:num_requests_waiting{{engine="{i}"}} 1' for i in range(20_001))
    assert report_of_page(metrics("vllm"), page, 0.0) is None


def test_pods_of_any_name_are_asked_for_and_no_name_breaks_out() -> None:
    assert pods_query("ns", ["a-1", "b.c"], ["x", "y:z"]) == '{namespace="ns",pod=~"a-1|b[.]c",__name__=~"x|y:z"}[75s]'
    for pod in ('a"', "a|b", "A", "a\nb"):
        with pytest.raises(ValueError, match="not a DNS label"):
            pods_query("ns", [pod], ["x"])
