"""Tests of the conditions that result from observations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from disagg_operator.status import changes, conditions
from disagg_operator.status.conditions import Intent, PoolIntent
from disagg_operator.status.effectiveness import Verdict
from disagg_operator.status.kv_links import RouterView, WorkerLink
from disagg_operator.status.pod_problems import Problem
from disagg_operator.status.stamping import Condition
from disagg_operator.status.workloads import NetworkCheck, Observed, Workload

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
POOLS = tuple(PoolIntent(name, 1, "spec", f"s={name}") for name in ("prefill", "decode"))
SCALED = replace(POOLS[1], autoscaled=True)
INTENT = Intent(3, POOLS, "http://u/v1", "m", "r1")
UP = {name: Workload(name, 1, 1, 1, 1, settled=True) for name in ("prefill", "decode", "router")}
TCP = (WorkerLink("p", "prefill", "tcp", "eth0"), WorkerLink("d", "decode", "tcp", "eth0"))


ALL_WELL = RouterView(1, 1, TCP)


def seen(view: RouterView | None = ALL_WELL, network: NetworkCheck | None = None, **changes: Workload) -> Observed:
    workloads = {**UP, **changes}
    pools = {name: workloads[name] for name in ("prefill", "decode")}
    return Observed(pools, workloads["router"], network or NetworkCheck(), view)


def told(intent: Intent, observed: Observed) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in conditions.conditions(intent, observed)}


def starting(name: str, problem: Problem | None = None) -> Workload:
    return Workload(name, 1, 1, 0, 1, settled=True, problem=problem)


PULL = Problem("ImagePull", "pod p: ImagePullBackOff: no such image")
RDMA = replace(INTENT, transport="rdma", fallback="Forbid")


@pytest.mark.parametrize(
    ("intent", "observed", "expected"),
    [
        pytest.param(
            INTENT, seen(),
            {"Ready": ("True", "Ready"), "Available": ("True", "PairsHealthy"), "Degraded": ("False", "AsSpecified")},
            id="all is well",
        ),
        pytest.param(
            INTENT, seen(view=None, decode=starting("decode", PULL)),
            {"DecodeReady": ("False", "ImagePull"), "Ready": ("False", "ImagePull"),
             "Available": ("Unknown", "RouterUnreachable")},
            id="the first cause is what Ready says",
        ),
        pytest.param(
            INTENT, seen(view=RouterView(0, 0)),
            {"KVTransferReady": ("False", "NoPairs"), "Available": ("False", "NoHealthyPair")},
            id="ready pods without a pair are not available",
        ),
        pytest.param(
            INTENT, seen(view=RouterView(2, 1, TCP)),
            {"KVTransferReady": ("False", "HandshakeFailed"), "Available": ("True", "PairsHealthy"),
             "Degraded": ("True", "HandshakeFailed"), "Ready": ("False", "HandshakeFailed")},
            id="one of two pairs serves, and is degraded",
        ),
        pytest.param(
            RDMA, seen(), {"KVTransferReady": ("False", "TransportFallback"), "Ready": ("False", "TransportFallback")},
            id="a fallback that is forbidden is not ready",
        ),
        pytest.param(
            replace(RDMA, fallback="Warn"), seen(),
            {"KVTransferReady": ("True", "PairsHealthy"), "Degraded": ("True", "TransportFallback"),
             "Ready": ("True", "Ready")},
            id="a fallback that is tolerated is degraded",
        ),
        pytest.param(
            replace(INTENT, interface="net1"), seen(), {"Degraded": ("True", "TransportFallback")},
            id="KV over another interface than the attached one is told",
        ),
        pytest.param(
            INTENT, seen(network=NetworkCheck(False, "MultusAbsent", "x")),
            {"NetworkReady": ("False", "MultusAbsent"), "Ready": ("False", "MultusAbsent")}, id="network",
        ),
        pytest.param(
            INTENT, seen(decode=replace(UP["decode"], current=2, settled=False)),
            {"Progressing": ("True", "RollingOut"), "Ready": ("False", "RollingOut")}, id="a rollout is not ready",
        ),
        pytest.param(
            INTENT, seen(decode=replace(starting("decode"), deadline_exceeded=True)),
            {"Progressing": ("False", "ProgressDeadlineExceeded")}, id="a stalled rollout",
        ),
        pytest.param(
            replace(INTENT, suspended=True), seen(view=None),
            {"Available": ("False", "Suspended"), "Ready": ("False", "Suspended")},
            id="suspended",
        ),
        pytest.param(
            replace(INTENT, pools=(POOLS[0], replace(POOLS[1], autoscaled=True, scaling_blind=True))), seen(),
            {"ScalingActive": ("False", "MetricsUnavailable"), "Degraded": ("True", "MetricsUnavailable"),
             "Ready": ("True", "Ready")},
            id="blind scaling degrades but serves",
        ),
        pytest.param(
            replace(INTENT, pools=(POOLS[0], SCALED), trouble=("CredentialsUnavailable", "x: Secret a does not exist")),
            seen(),
            {"ScalingActive": ("False", "CredentialsUnavailable"), "Degraded": ("True", "CredentialsUnavailable"),
             "Ready": ("True", "Ready")},
            id="a secret that is missing is told before the policy is blind",
        ),
        pytest.param(
            replace(
                INTENT, pools=(POOLS[0], SCALED),
                trouble=("MetricsUnavailable", "the Prometheus server does not answer"),
            ),
            seen(),
            {"ScalingActive": ("True", "MetricsFound")}, id="a look at Prometheus that failed is no blindness",
        ),
        pytest.param(
            replace(INTENT, trouble=("CredentialsUnavailable", "x: Secret a does not exist")), seen(),
            {"Ready": ("True", "Ready"), "Degraded": ("False", "AsSpecified")}, id="what scales nothing holds nothing",
        ),
        pytest.param(
            INTENT, seen(view=None, router=starting("router")),
            {"RouterReady": ("False", "PodsPending"),
             "KVTransferReady": ("False", "RouterNotReady"), "Available": ("False", "RouterNotReady")},
            id="no router",
        ),
    ],
)  # fmt: skip
def test_conditions(intent: Intent, observed: Observed, expected: dict[str, tuple[str, str]]) -> None:
    found = told(intent, observed)
    assert {k: found[k] for k in expected} == expected


def test_why_metrics_are_missing_is_said_where_they_are() -> None:
    why = ("MetricsUnavailable", "the Prometheus server does not answer")
    blind = replace(INTENT, pools=(POOLS[0], replace(SCALED, scaling_blind=True)), trouble=why)
    (scaling,) = [c for c in conditions.conditions(blind, seen()) if c.type == "ScalingActive"]
    assert (scaling.reason, scaling.message) == (
        "MetricsUnavailable",
        "the Prometheus server does not answer: replicas are held",
    )


def test_the_same_inputs_give_the_same_status_at_any_time() -> None:
    first = conditions.build(INTENT, seen(), {}, NOW)
    assert conditions.build(INTENT, seen(), first, LATER) == first


def test_columns_and_counts() -> None:
    built = conditions.build(INTENT, seen(decode=starting("decode")), {}, NOW)
    assert (built["prefill"], built["decode"]) == ("1/1", "0/1")
    assert built["pairs"]["transport"] == {"rdma": 0, "nvlink": 0, "shm": 0, "tcp": 2}
    assert (built["pairs"]["uses"], built["pairs"]["evidence"], built["pairs"]["interface"]) == (
        "tcp",
        "Configured",
        "eth0",
    )
    assert {c["observedGeneration"] for c in built["conditions"]} == {3}


def test_a_refusal_keeps_the_rest_of_the_status() -> None:
    good = conditions.build(INTENT, seen(), {}, NOW)
    bad = conditions.refused(4, "InvalidSpec", "spec.x: wrong", good, LATER)
    assert bad["pools"] == good["pools"]
    reasons = {c["type"]: c["reason"] for c in bad["conditions"]}
    assert (reasons["Accepted"], reasons["Ready"], reasons["Available"]) == (
        "InvalidSpec",
        "InvalidSpec",
        "PairsHealthy",
    )


def test_a_revision_is_current_once_all_pods_are_of_it() -> None:
    first = conditions.build(INTENT, seen(), {}, NOW)
    rolling = seen(decode=replace(UP["decode"], settled=False))
    second = conditions.build(replace(INTENT, revision="r2"), rolling, first, NOW)
    assert second["revision"] == {"current": "r1", "update": "r2"}
    third = conditions.build(replace(INTENT, revision="r2"), seen(), second, NOW)
    assert third["revision"] == {"current": "r2", "update": "r2"}
    assert [n.reason for n in changes.of_change(first, second)] == ["RolloutStarted"]
    assert [n.reason for n in changes.of_change(second, third)] == ["RolloutCompleted", "Ready"]


def test_a_shared_cause_is_one_event_and_a_restart_repeats_none() -> None:
    before = conditions.build(INTENT, seen(), {}, NOW)
    after = conditions.build(INTENT, seen(view=None, decode=starting("decode", PULL)), before, NOW)
    assert [(n.type, n.reason) for n in changes.of_change(before, after)] == [("Warning", "ImagePullFailed")]
    assert changes.of_change(after, after) == []


@pytest.mark.parametrize(
    ("intent", "observed", "expected"),
    [
        pytest.param(
            INTENT,
            seen(view=RouterView(2, 0, TCP)),
            {"KVTransferReady": ("False", "HandshakeFailed")},
            id="no pair works",
        ),
        pytest.param(
            INTENT,
            seen(view=RouterView(2, 1, TCP)),
            {"KVTransferReady": ("False", "HandshakeFailed"), "Available": ("True", "PairsHealthy")},
            id="one of two pairs works",
        ),
        pytest.param(
            replace(INTENT, interface="eth0"),
            seen(),
            {"KVTransferReady": ("True", "PairsHealthy")},
            id="the interface that is asked for",
        ),
        pytest.param(
            replace(INTENT, interface="net1", fallback="Forbid"),
            seen(),
            {"KVTransferReady": ("False", "TransportFallback")},
            id="another interface, which is forbidden",
        ),
        pytest.param(
            replace(INTENT, interface="net1"),
            seen(),
            {"KVTransferReady": ("True", "PairsHealthy"), "Degraded": ("True", "TransportFallback")},
            id="another interface, which is tolerated",
        ),
        pytest.param(
            replace(RDMA, interface="net1"),
            seen(view=RouterView(1, 1, (WorkerLink("p", "prefill", "rdma", "net1"),))),
            {"KVTransferReady": ("True", "PairsHealthy"), "Degraded": ("False", "AsSpecified")},
            id="all as asked for",
        ),
        pytest.param(
            INTENT,
            seen(decode=Workload("decode", 1, 1, 1, 1, settled=False)),
            {"Progressing": ("True", "RollingOut"), "Ready": ("False", "RollingOut")},
            id="ready pods of an older revision are left",
        ),
        pytest.param(
            INTENT,
            seen(decode=Workload("decode", 1, 1, 0, 1, settled=True, deadline_exceeded=True)),
            {"Progressing": ("False", "ProgressDeadlineExceeded")},
            id="a rollout that is stuck",
        ),
    ],
)
def test_pairs_networks_and_rollouts(intent: Intent, observed: Observed, expected: dict[str, tuple[str, str]]) -> None:
    assert told(intent, observed).items() >= expected.items()


def test_a_pools_status_says_how_it_is_scaled_where_that_is_known() -> None:
    pools = (POOLS[0], replace(POOLS[1], scaling={"lastDecision": {"to": 2}}))
    built = conditions.build(replace(INTENT, pools=pools), seen(), {}, NOW)
    assert [pool.get("lastDecision") for pool in built["pools"]] == [None, {"to": 2}]


@pytest.mark.parametrize(
    ("settled", "reason", "status"),
    [
        pytest.param(False, "PortInUse", "False", id="the new revision fails while the old one serves"),
        pytest.param(False, "InsufficientCapacity", "True", id="a new pod waits for a node"),
        pytest.param(True, "PortInUse", "True", id="all pods are new and enough are ready"),
    ],
)
def test_a_revision_that_fails_is_told_although_the_last_one_serves(settled: bool, reason: str, status: str) -> None:
    failing = replace(UP["decode"], current=2, settled=settled, problem=Problem(reason, "pod p: x"))
    found = told(INTENT, seen(decode=failing))
    assert found["DecodeReady"][0] == status
    if status == "False":
        assert (found["DecodeReady"][1], found["Ready"], found["Degraded"]) == (
            reason,
            ("False", reason),
            ("True", reason),
        )
        assert found["Available"] == ("True", "PairsHealthy")


def test_the_message_about_transfers_says_transport_evidence_and_interface() -> None:
    proved = tuple(replace(link, evidence="Proved", interface="net1") for link in TCP)
    by_type = {c.type: c.message for c in conditions.conditions(INTENT, seen(view=RouterView(1, 1, proved)))}
    assert by_type["KVTransferReady"] == "1 of 1 pairs moved a KV block over tcp (Proved) on net1"


def test_pools_of_two_versions_are_told_apart() -> None:
    prefill = WorkerLink("p", "prefill", "tcp", "eth0", compat="a", engine="vllm 0.33.0")
    decode = WorkerLink("d", "decode", "tcp", "eth0", compat="b", engine="vllm 0.32.0")
    found = told(INTENT, seen(view=RouterView(0, 0, (prefill, decode))))
    assert found["KVTransferReady"] == found["Ready"] == ("False", "EngineMismatch")


@pytest.mark.parametrize(
    ("verdict", "expected", "degraded"),
    [
        (None, ("Unknown", "NoData"), ("False", "AsSpecified")),
        (Verdict(True, 100), ("True", "PromptsTransferred"), ("False", "AsSpecified")),
        (Verdict(False, 40), ("False", "PrefillRepeated"), ("True", "PrefillRepeated")),
    ],
)
def test_a_prompt_that_is_computed_twice_is_told(
    verdict: Verdict | None, expected: tuple[str, str], degraded: tuple[str, str]
) -> None:
    found = told(INTENT, replace(seen(), verdict=verdict))
    assert (found["DisaggregationEffective"], found["Degraded"]) == (expected, degraded)
    assert found["Ready"] == ("True", "Ready")


def test_a_verdict_outlives_the_operator_and_not_the_prefill_pool() -> None:
    before = conditions.build(INTENT, replace(seen(), verdict=Verdict(False, 40)), {}, NOW)
    assert conditions.build(INTENT, seen(), before, LATER) == before
    alone = replace(INTENT, pools=(replace(POOLS[0], desired=0), POOLS[1]))
    built = conditions.build(alone, seen(prefill=Workload("prefill", 0, settled=True)), before, LATER)
    (found,) = [c for c in built["conditions"] if c["type"] == "DisaggregationEffective"]
    assert (found["status"], found["reason"]) == ("Unknown", "NoPrefillWorkers")
    again = conditions.build(INTENT, seen(), built, LATER)
    (found,) = [c for c in again["conditions"] if c["type"] == "DisaggregationEffective"]
    assert found["reason"] == "NoData"


def test_an_experiment_is_a_condition_and_one_warning_that_leaves_the_others_alone() -> None:
    tried = replace(INTENT, declared=(Condition("Experimental", "True", "UnpinnedKV", "watch the counter"),))
    before = conditions.build(INTENT, seen(), {}, NOW)
    after = conditions.build(tried, seen(), before, LATER)
    found = {c["type"]: c for c in after["conditions"]}
    told_ = found.pop("Experimental")
    assert (told_["status"], told_["reason"], told_["message"]) == ("True", "UnpinnedKV", "watch the counter")
    assert found == {c["type"]: c for c in before["conditions"]}
    notes = [(n.type, n.reason, n.message) for n in changes.of_change(before, after)]
    assert notes == [("Warning", "Experimental", "Experimental: watch the counter")]
    assert changes.of_change(after, after) == []
    assert conditions.build(INTENT, seen(), after, LATER) == before


def test_an_update_of_the_runtime_is_a_condition_that_leaves_the_others_alone() -> None:
    before = conditions.build(INTENT, seen(), {}, NOW)
    after = conditions.build(replace(INTENT, runtime_update="worker w:1 -> w:2"), seen(), before, LATER)
    old, new = ({c["type"]: c for c in status["conditions"]} for status in (before, after))
    assert (old.pop("RuntimeUpToDate")["status"], new["RuntimeUpToDate"]["status"]) == ("True", "False")
    told_ = new.pop("RuntimeUpToDate")
    assert told_["reason"] == "RuntimeUpdateAvailable"
    assert told_["message"].startswith("worker w:1 -> w:2; `disagg rollout restart --runtime` or a new value")
    assert new == old


def test_why_an_idle_deployment_stays_is_a_condition_of_its_own() -> None:
    stays = replace(INTENT, awake=("DryRun", "scaling.dryRun is set"))
    assert told(stays, seen()) == told(INTENT, seen()) | {"ScaledToZero": ("False", "DryRun")}


AT_ZERO = replace(INTENT, pools=tuple(replace(p, desired=0) for p in POOLS), zero=("Idle", "nobody asks"))
NONE: dict[str, Any] = {name: Workload(name, 0, settled=True) for name in ("prefill", "decode")}


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        pytest.param(
            seen(view=RouterView(0, 0), **NONE),
            {"Ready": ("True", "ScaledToZero"), "Available": ("True", "ScaledToZero"),
             "ScaledToZero": ("True", "Idle"), "PrefillReady": ("True", "ScaledToZero"),
             "KVTransferReady": ("Unknown", "ScaledToZero"), "Degraded": ("False", "AsSpecified"),
             "DisaggregationEffective": ("Unknown", "NoData")},
            id="it is well",
        ),
        pytest.param(
            seen(view=None, **NONE),
            {"Ready": ("False", "RouterUnreachable"), "Available": ("Unknown", "RouterUnreachable")},
            id="nobody would notice a request",
        ),
    ],
)  # fmt: skip
def test_a_deployment_at_zero_is_well_while_its_routers_are(
    observed: Observed, expected: dict[str, tuple[str, str]]
) -> None:
    assert told(AT_ZERO, observed).items() >= expected.items()


def test_the_request_for_a_runtime_that_was_carried_out_is_repeated_in_short() -> None:
    assert "runtimeRequest" not in conditions.build(INTENT, seen(), {}, NOW)
    asked = replace(INTENT, runtime_request="x" * 300)
    assert conditions.build(asked, seen(), {}, NOW)["runtimeRequest"] == "x" * 256
