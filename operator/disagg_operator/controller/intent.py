"""PURE: The intent of an accepted resource, from which its status is built."""

from __future__ import annotations

from collections.abc import Mapping

from disagg_operator.api.violation import Violation
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.controller import decision_report
from disagg_operator.controller.acceptance import AcceptedDeployment
from disagg_operator.controller.replicas import Replicas
from disagg_operator.controller.runtime_updates import ChosenRuntime
from disagg_operator.desired.names import router_name, selector_text
from disagg_operator.status import conditions
from disagg_operator.status.declared_conditions import declared_conditions
from disagg_operator.vocabulary import Obj
from disagg_wire.roles import ROLES


def intent_of(
    plan: AcceptedDeployment,
    pools: tuple[conditions.PoolIntent, ...],
    revision: str,
    trouble: tuple[str, str] | None = None,
    refusal: tuple[str, str] | None = None,
    warnings: tuple[Violation, ...] = (),
    runtime: ChosenRuntime | None = None,
) -> conditions.Intent:
    """Return the intent of a resource that is served.

    `revision` is the revision label of the pods that are being rolled out; `trouble` is that of
    `Live`; `refusal` and `warnings` are those of the judgement; `runtime` is what it is
    rendered with.
    """
    resource, spec = plan.resource, plan.resource.spec
    host = f"{router_name(resource.metadata.name)}.{resource.metadata.namespace}.svc"
    port = "" if spec.router.service.port == 80 else f":{spec.router.service.port}"
    return conditions.Intent(
        generation=resource.metadata.generation,
        pools=pools,
        url=f"http://{host}{port}/v1",
        model=spec.model.served_name,
        revision=revision,
        suspended=spec.suspend,
        transport=spec.kv_transfer.transport,
        fallback="Forbid" if spec.kv_transfer.forbids_fallback else "Warn",
        interface=plan.interface,
        declared=declared_conditions(spec),
        trouble=trouble,
        refusal=refusal,
        warnings=tuple((warning.reason, str(warning)) for warning in warnings),
        runtime_update="" if runtime is None else runtime.update,
        runtime_request="" if runtime is None else runtime.pins.asked,
    )


def pool_intents(
    name: str,
    pools: Mapping[str, Replicas],
    scaling: ScalePlan,
    decisions: Mapping[str, Decision],
    stored: Obj,
    now: str,
) -> tuple[conditions.PoolIntent, ...]:
    """Return the desired state of both pools of deployment `name`, whose status is `stored`."""
    before = {str(p.get("name")): p for p in stored.get("pools") or []}
    out = []
    for role in ROLES:
        scaled = role in scaling.policies
        decision = decisions.get(role) if scaled else None
        told = decision_report.in_status(before.get(role) or {}, decision, scaling.dry_run, now) if scaled else {}
        out.append(
            conditions.PoolIntent(
                name=role,
                desired=pools[role].size,
                owner=pools[role].owner,
                selector=selector_text(name, role),
                autoscaled=scaled,
                scaling_blind=decision is not None and decision.blind,
                unmet=None if decision is None else decision.unmet,
                scaling=told,
            )
        )
    return tuple(out)
