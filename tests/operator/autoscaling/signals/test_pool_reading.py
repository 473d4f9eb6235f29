"""Pages and answers become samples, in which an absent value is never zero."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.signals.metrics_page import parse
from disagg_operator.autoscaling.signals.pool_reading import PoolReading, PoolView, loads, reading, view
from disagg_operator.autoscaling.signals.prometheus_query import history_queries, samples_query
from disagg_operator.autoscaling.signals.samples import Sample

WORKER = (
    "# TYPE disagg_worker_waiting_requests gauge\n"
    "disagg_worker_waiting_requests {}\n"
    "disagg_worker_running_requests {}\n"
)


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        pytest.param(WORKER.format(3, 2), 5.0, id="waiting and running are summed"),
        pytest.param(WORKER.format(0, 0), 0.0, id="zero is zero"),
        pytest.param("", None, id="an empty page is no answer"),
        pytest.param("disagg_worker_waiting_requests 3\n", None, id="half an answer is none"),
        pytest.param(WORKER.format("NaN", 2), None, id="NaN is no number"),
        pytest.param(WORKER.format("+Inf", 2), None, id="infinity is no number"),
        pytest.param(WORKER.format("-1", 2), None, id="a negative gauge is no number"),
        pytest.param("<html>not metrics</html>", None, id="another page is no answer"),
        pytest.param(WORKER.format(3, 2).replace("disagg_", "vllm:"), None, id="other names are no answer"),
    ],
)
def test_worker_requests(text: str, requests: float | None) -> None:
    found = reading("decode", {"a": parse(text, 1.0)}, {})
    assert found.by_pod == ({} if requests is None else {"a": requests})


def test_labels_of_our_own_tell_series_apart_and_others_do_not() -> None:
    page = parse(
        'disagg_router_waiting_requests{pool="decode"} 7\n'
        'disagg_router_objective_requests_total{within="true",objective="ttft",job="x"} 3\n'
        'disagg_router_ttft_seconds_bucket{le="1"} 3\n',
        5.0,
    )
    assert page == Sample(
        5.0, {"disagg_router_waiting_requests:decode": 7.0, "disagg_router_objective_requests_total:ttft:true": 3.0}
    )


def test_routers_waiting_is_known_only_when_all_answered() -> None:
    one = Sample(0.0, {"disagg_router_waiting_requests:decode": 7.0})
    assert reading("decode", {}, {"r": one}).router_waiting == 7.0
    assert reading("prefill", {}, {"r": one}).router_waiting is None
    assert reading("decode", {}, {"r": one, "s": None}).router_waiting is None
    assert reading("decode", {}, {}).router_waiting is None


@pytest.mark.parametrize(
    ("ready", "reading", "expected"),
    [
        pytest.param(["a", "b"], PoolReading({"a": 1.0, "b": 2.0}, 3.0), PoolView(6.0, 0, False), id="all answered"),
        pytest.param(["a", "b"], PoolReading({"a": 1.0}, 3.0), PoolView(4.0, 1, False), id="one pod silent"),
        pytest.param(["a"], PoolReading({}, 3.0), PoolView(None, 1, False), id="all pods silent is unknown"),
        pytest.param(["a"], PoolReading({"a": 1.0}, None), PoolView(1.0, 0, True), id="router silent"),
        pytest.param([], PoolReading({}, 3.0), PoolView(3.0, 0, False), id="no pod yet, the routers' queue counts"),
        pytest.param([], PoolReading({}, None), PoolView(None, 0, True), id="nobody to ask is unknown"),
        pytest.param(["a"], None, PoolView(None, 1, True), id="no reading is unknown"),
        pytest.param(["a"], PoolReading({"a": 1.0, "gone": 9.0}, 0.0), PoolView(1.0, 0, False), id="a gone pod is out"),
    ],
)
def test_view(ready: list[str], reading: PoolReading | None, expected: PoolView) -> None:
    assert view(ready, reading) == expected


@given(st.text())
def test_no_page_can_break_the_reader(text: str) -> None:
    parse(text, 0.0)
    found = parse("disagg_worker_kv_tokens " + text, 0.0)
    assert found is None or all(math.isnan(v) or 0 <= v < math.inf for v in found.values.values())


@pytest.mark.parametrize("name", ['a"} or vector(0) #', "a b", "", "A", "a\n"])
def test_a_name_that_could_leave_the_quotes_of_a_query_is_refused(name: str) -> None:
    for query in (samples_query, history_queries):
        with pytest.raises(ValueError, match="not a DNS label"):
            query("ns", name)
        with pytest.raises(ValueError, match="not a DNS label"):
            query(name, "chat")


def test_the_load_of_a_pod_is_what_it_holds_and_none_is_known_of_a_silent_one() -> None:
    assert loads({"a": parse(WORKER.format(1, 2), 1.0), "b": None, "c": parse(WORKER.format(0, 0), 1.0)}) == {
        "a": 3.0,
        "c": 0.0,
    }
