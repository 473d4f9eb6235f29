"""What the network must carry, and that it is named where it is the limit."""

from __future__ import annotations

import pytest
from tests.operator.planning.questions import question, traffic

from disagg_operator.planning import network_load, report
from disagg_operator.planning.capacity import Infeasible
from disagg_operator.planning.deployment_plan import Deployment, Plan, best_disaggregated


def planned(network: str, rate: float = 50.0, prompt: tuple[float, float] = (1000, 4000)) -> Plan:
    q = question(network=network, traffic=traffic(rate, prompt), ttft_s=4.0)
    return Plan(q, best_disaggregated(q), Infeasible("ttft", "not asked"), None, ((0.1, 1.0, 1.0),))


def test_the_mean_is_the_rate_times_the_cache_of_a_prompt_and_the_peak_that_of_busy_workers() -> None:
    plan = planned("rdma-400")
    d = plan.disaggregated
    assert isinstance(d, Deployment)
    sends, takes = network_load.kv_loads(plan.question, d)
    assert (sends.role, takes.role) == ("prefill", "decode")
    assert sends.mean_bytes_per_s == takes.mean_bytes_per_s == pytest.approx(50 * 1000 * 327_680)
    assert sends.worker_mean_bytes_per_s == pytest.approx(sends.mean_bytes_per_s / d.pools[0].replicas)
    # While all compute, the pool sends more than the mean by the inverse of its utilisation.
    assert sends.peak_bytes_per_s == pytest.approx(sends.mean_bytes_per_s / d.pools[0].utilisation, rel=1e-6)
    assert takes.peak_bytes_per_s == sends.peak_bytes_per_s
    assert sends.interface_bytes_per_s == pytest.approx(45e9)
    assert sends.peak_use == pytest.approx(sends.worker_peak_bytes_per_s / 45e9)
    assert network_load.limits(plan) == []
    first, second = network_load.rows(plan)
    assert (first[0], second[0]) == ("prefill sends", "decode takes")
    assert first[2] == "16.4 GB/s"
    assert len(first) == len(network_load.KV_COLUMNS)
    assert [row["role"] for row in network_load.as_data(plan)] == ["prefill", "decode"]


def test_where_the_network_and_not_a_pool_is_the_limit_it_is_said() -> None:
    plan = planned("ethernet-25")
    d = plan.disaggregated
    assert isinstance(d, Deployment)
    assert {p.bound for p in d.pools} & {"network"}
    told = network_load.limits(plan)
    assert told[0].startswith("The network is the limit, not ")
    assert "ethernet-25" in told[0]
    assert set(told) <= set(report.notes(plan))


def test_a_peak_beyond_an_interface_is_said() -> None:
    plan = planned("ethernet-25", rate=0.2)
    told = network_load.limits(plan)
    assert [t.partition(":")[0] for t in told] == ["At the peak the network is the limit, not prefill"] * 1 + (
        ["At the peak the network is the limit, not decode"] if len(told) > 1 else []
    )
    assert "a worker would send" in told[0]
    assert "carries 2.5 GB/s" in told[0]


def test_without_two_pools_nothing_is_carried() -> None:
    q = question()
    plan = Plan(q, Infeasible("ttft", "too slow"), Infeasible("ttft", "too slow"), None, ((0.1, 1.0, 1.0),))
    assert (network_load.rows(plan), network_load.limits(plan), network_load.as_data(plan)) == ([], [], [])
