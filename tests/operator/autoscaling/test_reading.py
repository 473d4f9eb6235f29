"""Texts and answers to numbers: absent is never zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.signals.prometheus import router_query, worker_query
from disagg_operator.autoscaling.signals.reading import (
    PoolReading,
    PoolView,
    router_waiting,
    vector_by_pod,
    vector_single,
    view,
    worker_requests,
)

WORKER = "# TYPE disagg_worker_waiting_requests gauge\ndisagg_worker_waiting_requests {}\ndisagg_worker_running_requests {}\n"


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
    assert worker_requests(text) == requests


def test_router_waiting_is_told_apart_by_pool() -> None:
    text = 'disagg_router_waiting_requests{pool="decode"} 7\n'
    assert router_waiting(text) == {"prefill": 0.0, "decode": 7.0}
    assert router_waiting("up 1\n") is None


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


def test_prometheus_vectors() -> None:
    assert vector_by_pod([{"metric": {"pod": "a"}, "value": [1, "2"]}, {"metric": {"pod": "b"}, "value": [1, "NaN"]}]) == {"a": 2.0}
    assert vector_by_pod(None) is None
    assert vector_single([]) is None
    assert vector_single([{"metric": {}, "value": [1, "NaN"]}]) is None
    assert vector_single([{"metric": {}, "value": [1, "4"]}]) == 4.0


@given(st.recursive(st.none() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_no_answer_of_a_prometheus_can_break_the_reader(answer: object) -> None:
    vector_by_pod(answer)
    vector_single(answer)


@given(st.text())
def test_no_page_can_break_the_reader(text: str) -> None:
    worker_requests(text)
    router_waiting(text)


@pytest.mark.parametrize("name", ['a"} or vector(0) #', "a b", "", "A", "a\n"])
def test_a_name_that_could_leave_the_quotes_of_a_query_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a DNS label"):
        worker_query("ns", name, "prefill")
    with pytest.raises(ValueError, match="not a DNS label"):
        router_query(name, "chat", "prefill")
