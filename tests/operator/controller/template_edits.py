"""Generated edits of podTemplates: good ones, and bad ones with the path that is to blame."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Obj = dict[str, Any]
_MAIN = "spec.containers[main]"


@dataclass(frozen=True)
class TemplateEdit:
    """A podTemplate, and the path in it that a refusal must name; None if it must be accepted."""

    template: Obj
    path: str | None = None


def _main(**fields: Any) -> Obj:
    return {"spec": {"containers": [{"name": "main", **fields}]}}


def _beside(**fields: Any) -> Obj:
    return {"spec": {"containers": [{"name": "mesh", "image": "mesh:1", **fields}]}}


def _pod(**fields: Any) -> Obj:
    return {"spec": fields}


def good_edit(choice: random.Random) -> TemplateEdit:
    """Return an edit that any namespace may make. It differs from all others."""
    n = str(choice.randrange(10**9))
    return TemplateEdit(
        choice.choice(
            (
                {"metadata": {"labels": {"team": f"t{n}"}}},
                {"metadata": {"annotations": {"example.com/note": n}}},
                _main(env=[{"name": "NCCL_DEBUG", "value": n}]),
                _main(env=[{"name": "DISAGG_LOG_LEVEL", "value": "DEBUG"}, {"name": "A", "value": n}]),
                _main(resources={"requests": {"cpu": f"{choice.randrange(1, 9999)}m", "memory": "1Gi"}}),
                _main(imagePullPolicy="Always", env=[{"name": "B", "value": n}]),
                _main(volumeMounts=[{"name": "more", "mountPath": f"/more/{n}"}])
                | {"metadata": {"labels": {"with": "volume"}}},
                _beside(
                    args=[n], securityContext={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
                ),
                _beside(ports=[{"name": "m", "containerPort": choice.randrange(20_000, 60_000)}]),
                _pod(nodeSelector={"zone": f"z{n}"}),
                _pod(tolerations=[{"key": f"k{n}", "operator": "Exists"}]),
                _pod(terminationGracePeriodSeconds=choice.randrange(300, 9999)),
                _pod(schedulerName=f"s{n}"),
                _pod(imagePullSecrets=[{"name": f"pull{n}"}]),
                _pod(securityContext={"fsGroup": choice.randrange(1, 60_000)}),
                _pod(initContainers=[{"name": "fetch", "image": f"fetch:{n}", "command": ["fetch"]}]),
                _pod(volumes=[{"name": "cache", "emptyDir": {"sizeLimit": f"{choice.randrange(1, 999)}Gi"}}]),
                _pod(hostAliases=[{"ip": "10.0.0.1", "hostnames": [f"h{n}"]}]),
                _pod(dnsConfig={"options": [{"name": "ndots", "value": n}]}),
            )
        )
    )


def edit_that_the_api_server_refuses(choice: random.Random) -> TemplateEdit:
    """Return an edit that passes the operator's own checks and the path that is to blame for it."""
    n = choice.randrange(10**9)
    word = f"w{n}"
    template, path = choice.choice(
        (
            (_main(resources={"requests": {"cpu": f"-{n + 1}m"}}), f"{_MAIN}.resources.requests.cpu"),
            (_main(resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}), f"{_MAIN}.resources.requests"),
            (_main(env=[{"name": f"{word} =", "value": "1"}]), f"{_MAIN}.env[{word} =].name"),
            (_main(env=[{"name": "A", "value": n}]), f"{_MAIN}.env[A].value"),
            (_main(env=[{"name": "A", "value": word}] * 2), f"{_MAIN}.env"),
            (_main(volumeMounts=[{"name": word, "mountPath": "/x"}]), f"{_MAIN}.volumeMounts[/x].name"),
            (_main(imagePullPolicy=word), f"{_MAIN}.imagePullPolicy"),
            (_beside(ports=[{"containerPort": 70_000 + n}]), "spec.containers[mesh].ports[0].containerPort"),
            (_beside(ports=[{"containerPort": word}]), "spec.containers[mesh].ports["),
            (_pod(initContainers=[{"name": word}]), f"spec.initContainers[{word}].image"),
            (_pod(nodeSelector={"a": f"{word} !"}), "spec.nodeSelector"),
            (_pod(tolerations=word), "spec.tolerations"),
            (_pod(tolerations=[{"key": "a", "operator": word}]), "spec.tolerations[0].operator"),
            (_pod(securityContext={"runAsUser": word}), "spec.securityContext.runAsUser"),
            (_pod(hostAliases=[{"ip": word}]), "spec.hostAliases[0].ip"),
            ({"metadata": {"labels": {"a": f"{word} !"}}}, "metadata.labels"),
            ({"metadata": {"annotations": {"a": n}}}, "metadata.annotations.a"),
        )
    )
    return TemplateEdit(template, path)


def edit_that_we_refuse(choice: random.Random) -> TemplateEdit:
    """Return an edit that is refused before the API server is asked, with the path to blame."""
    n = choice.randrange(10**9)
    word = f"w{n}"
    quantity = choice.choice(("10GB", "lots", "1,5", "0x10", "5 Gi", word))
    kind = choice.choice((_numbers, _permissions, _owned, _missing))
    return TemplateEdit(*choice.choice(kind(n, word, quantity)))


def _numbers(n: int, word: str, quantity: str) -> tuple[tuple[Obj, str], ...]:
    """What the API server refuses without a path."""
    return (
        (_main(resources={"limits": {"memory": quantity}}), f"{_MAIN}.resources.limits.memory"),
        (_main(resources={"requests": {"cpu": quantity}}), f"{_MAIN}.resources.requests.cpu"),
        (_beside(resources={"limits": {"cpu": quantity}}), "spec.containers[mesh].resources.limits.cpu"),
        (_pod(volumes=[{"name": "v", "emptyDir": {"sizeLimit": quantity}}]), "spec.volumes[v].emptyDir.sizeLimit"),
        (_pod(terminationGracePeriodSeconds=300.5), "spec.terminationGracePeriodSeconds"),
        (_pod(terminationGracePeriodSeconds=1 << 70), "spec.terminationGracePeriodSeconds"),
    )


def _permissions(n: int, word: str, quantity: str) -> tuple[tuple[Obj, str], ...]:
    """What only the owner of the operator may grant."""
    add = {"capabilities": {"add": ["SYS_ADMIN"]}}
    return (
        (_pod(hostNetwork=True), "spec.hostNetwork"),
        (_pod(hostPID=True), "spec.hostPID"),
        (_pod(hostIPC=True), "spec.hostIPC"),
        (_pod(serviceAccountName=word), "spec.serviceAccountName"),
        (_pod(serviceAccountName=None), "spec.serviceAccountName"),
        (_pod(automountServiceAccountToken=True), "spec.automountServiceAccountToken"),
        (_pod(volumes=[{"name": word, "hostPath": {"path": "/"}}]), f"spec.volumes[{word}].hostPath"),
        (_pod(volumes=[{"name": word, "nfs": {"server": "a", "path": "/"}}]), f"spec.volumes[{word}].nfs"),
        (_pod(securityContext={"runAsUser": 0}), "spec.securityContext.runAsUser"),
        (_pod(securityContext={"sysctls": []}), "spec.securityContext.sysctls"),
        (_pod(nodeName=word), "spec.nodeName"),
        (_pod(**{f"field{word}": {}}), f"spec.field{word}"),
        (_main(securityContext={"privileged": True}), f"{_MAIN}.securityContext.privileged"),
        (_main(securityContext=None), f"{_MAIN}.securityContext"),
        (_main(securityContext={"capabilities": {"drop": []}}), f"{_MAIN}.securityContext.capabilities"),
        (_beside(securityContext=add), "spec.containers[mesh].securityContext.capabilities"),
        (_beside(ports=[{"name": "p", "containerPort": 1, "hostPort": 1}]), "spec.containers[mesh].ports[p].hostPort"),
        ({"metadata": {"annotations": {"cdi.k8s.io/x": word}}}, "metadata.annotations[cdi.k8s.io/x]"),
        (_pod(priorityClassName="system-node-critical"), "spec.priorityClassName"),
        (
            _pod(volumes=[{"name": word, "projected": {"sources": [{"serviceAccountToken": {"path": word}}]}}]),
            f"spec.volumes[{word}].projected.sources[0].serviceAccountToken",
        ),
    )


def _owned(n: int, word: str, quantity: str) -> tuple[tuple[Obj, str], ...]:
    """What the operator sets itself."""
    return (
        (_main(env=[{"name": "DISAGG_POD_NAME", "value": word}]), f"{_MAIN}.env[DISAGG_POD_NAME]"),
        (_main(image=word), f"{_MAIN}.image"),
        (_main(command=[word]), f"{_MAIN}.command"),
        (_main(livenessProbe=None), f"{_MAIN}.livenessProbe"),
        (_main(ports=None), f"{_MAIN}.ports"),
        (_main(volumeMounts=None), f"{_MAIN}.volumeMounts"),
        (_main(lifecycle=word), f"{_MAIN}.lifecycle"),
        (_main(securityContext=[]), f"{_MAIN}.securityContext"),
        (_pod(terminationGracePeriodSeconds=None), "spec.terminationGracePeriodSeconds"),
        (_main(ports=[{"name": "http", "containerPort": 1}]), f"{_MAIN}.ports[http]"),
        (_pod(terminationGracePeriodSeconds=n % 300), "spec.terminationGracePeriodSeconds"),
        (_pod(volumes=[{"name": "cluster-key", "emptyDir": {}}]), "spec.volumes[cluster-key]"),
        ({"metadata": {"labels": {"disagg.dev/pool": word}}}, "metadata.labels[disagg.dev/pool]"),
    )


def _missing(n: int, word: str, quantity: str) -> tuple[tuple[Obj, str], ...]:
    """What does not exist."""
    return (
        (_pod(volumes=[{"name": "v", "secret": {"secretName": word}}]), "spec.volumes[v].secret.secretName"),
        (_pod(priorityClassName=word), "spec.priorityClassName"),
        (_pod(runtimeClassName=word), "spec.runtimeClassName"),
        (_main(envFrom=[{"configMapRef": {"name": word}}]), f"{_MAIN}.envFrom[0].configMapRef.name"),
    )
