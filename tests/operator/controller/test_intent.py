"""A status speaks of what the accepted resource asks for."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good, of

from disagg_operator.autoscaling.policy.decision import METRICS_UNAVAILABLE, Decision
from disagg_operator.controller.acceptance import assess
from disagg_operator.controller.intent import intent_of, pool_intents
from disagg_operator.controller.replicas import Replicas
from disagg_operator.status.conditions import Intent, PoolIntent
from disagg_operator.status.stamping import Condition

POOLS = (PoolIntent("prefill", 1, "spec", "s"), PoolIntent("decode", 2, "autoscaler", "s", autoscaled=True))


def intent(trouble: tuple[str, str] | None = None, **spec: Any) -> Intent:
    resource = good(**spec)
    resource["metadata"]["generation"] = 7
    return intent_of(assess(resource).plan, POOLS, "5d8f", trouble)


def test_the_generation_the_pools_and_the_revision_are_those_that_are_acted_on() -> None:
    found = intent(trouble=("CredentialsUnavailable", "no such secret"))
    assert (found.generation, found.pools, found.revision) == (7, POOLS, "5d8f")
    assert found.trouble == ("CredentialsUnavailable", "no such secret")
    assert (found.model, found.suspended, found.transport, found.interface) == ("m", False, "auto", None)


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        ({}, "http://chat-router.default.svc/v1"),
        ({"router": {"service": {"port": 8080}}}, "http://chat-router.default.svc:8080/v1"),
    ],
)
def test_clients_find_the_router_by_its_service(spec: dict[str, Any], url: str) -> None:
    assert intent(**spec).url == url


RDMA = {"transport": "rdma", "network": {"attachmentRef": {"name": "fast"}, "rdmaResource": {"name": "rdma/hca"}}}


def test_an_experiment_is_told_only_of_a_resource_that_opts_in() -> None:
    def experiment(engine: str, /, **spec: Any) -> tuple[Condition, ...]:
        return intent_of(assess(of(engine, **spec)).plan, POOLS, "5d8f").declared

    (found,) = experiment("lmdeploy", engine={"experimental": True}, kvTransfer=RDMA)
    assert (found.type, found.status, found.reason) == ("Experimental", "True", "UnpinnedKV")
    assert "disagg_engine_other_first_tokens_total" in found.message
    assert experiment("lmdeploy") == experiment("vllm") == intent().declared == ()


NETWORK = {"attachmentRef": {"name": "fast"}, "interface": "net3", "rdmaResource": {"name": "rdma/hca"}}


@pytest.mark.parametrize(
    ("kv_transfer", "transport", "fallback", "interface"),
    [
        ({}, "auto", "Warn", None),
        ({"transport": "tcp", "network": NETWORK}, "tcp", "Warn", "net3"),
        ({"transport": "rdma", "network": NETWORK}, "rdma", "Forbid", "net3"),
        ({"transport": "rdma", "fallback": "Warn", "network": NETWORK}, "rdma", "Warn", "net3"),
        ({"transport": "tcp", "fallback": "Forbid"}, "tcp", "Forbid", None),
    ],
)
def test_a_fallback_is_forbidden_where_the_resource_says_so(
    kv_transfer: dict[str, Any], transport: str, fallback: str, interface: str | None
) -> None:
    found = intent(kvTransfer=kv_transfer)
    assert (found.transport, found.fallback, found.interface) == (transport, fallback, interface)


def test_a_suspended_resource_is_known_as_such() -> None:
    assert intent(suspend=True).suspended


def test_the_last_decision_is_told_of_pools_that_are_scaled_and_kept_while_there_is_no_new_one() -> None:
    scaling = assess(good(decode={"autoscaling": {"maxReplicas": 4}})).plan.scaling
    pools = {"prefill": Replicas(2, "spec", None), "decode": Replicas(3, "autoscaler", None)}
    stored = {"pools": [{"name": "decode", "lastDecision": {"reason": "QueueAboveTarget", "from": 2, "to": 3}}]}
    prefill, decode = pool_intents("chat", pools, scaling, {}, stored, "2026-01-01T00:00:00Z")
    assert (prefill.name, prefill.desired, prefill.autoscaled, prefill.scaling) == ("prefill", 2, False, {})
    assert (decode.desired, decode.owner, decode.scaling_blind) == (3, "autoscaler", False)
    assert decode.scaling["lastDecision"] == {"reason": "QueueAboveTarget", "from": 2, "to": 3}

    blind = Decision(3, 3, METRICS_UNAVAILABLE, "QueueDepth", None, 4.0)
    decisions = {"decode": blind, "prefill": blind}
    prefill, decode = pool_intents("chat", pools, scaling, decisions, stored, "2026-01-01T00:00:00Z")
    assert (prefill.scaling_blind, decode.scaling_blind) == (False, True)
    assert decode.scaling["scaling"]["wanted"] == 3
    assert decode.scaling["lastDecision"]["reason"] == METRICS_UNAVAILABLE
