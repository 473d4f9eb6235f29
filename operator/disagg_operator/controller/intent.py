"""PURE: The intent of an accepted resource, from which its status is built."""

from __future__ import annotations

from disagg_operator.api.violation import Violation
from disagg_operator.controller.acceptance import AcceptedDeployment
from disagg_operator.desired.names import router_name
from disagg_operator.status import conditions


def intent_of(
    plan: AcceptedDeployment,
    pools: tuple[conditions.PoolIntent, ...],
    revision: str,
    trouble: tuple[str, str] | None = None,
    refusal: tuple[str, str] | None = None,
    warnings: tuple[Violation, ...] = (),
    update: str = "",
) -> conditions.Intent:
    """Return the intent of a resource that is served.

    `revision` is the revision label of the pods that are being rolled out; `trouble` is that of
    `Live`; `refusal` and `warnings` are those of the judgement; `update` is what an update of the
    runtime would change.
    """
    resource, spec = plan.resource, plan.resource.spec
    experiment = spec.engine.known.experiment if spec.engine.experimental else None
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
        experiment=None if experiment is None else (experiment.reason, experiment.message),
        trouble=trouble,
        refusal=refusal,
        warnings=tuple((warning.reason, str(warning)) for warning in warnings),
        runtime_update=update,
    )
