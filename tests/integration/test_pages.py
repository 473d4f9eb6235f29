"""The resources and commands of the pages for users, as they stand there.

The commands of docs/rollouts.md, upgrades.md and installation.md are run by the modules that are
named after them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.administrator import Shell
from tests.integration.apiserver import ApiServer
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.integration.pages import CONSOLE, YAML, Block, blocks, commands
from tests.ports import free_port

from disagg_operator.api import parse_file
from disagg_operator.controller.references import Reference, references_of
from disagg_operator.kube.resources import (
    CONFIG_MAP,
    NETWORK_ATTACHMENT,
    PERSISTENT_VOLUME_CLAIM,
    PRIORITY_CLASS,
    RESOURCE_CLAIM_TEMPLATE,
    RUNTIME_CLASS,
    SECRET,
)
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

PAGES = [f"docs/{name}.md" for name in ("operator", "rollouts", "upgrades", "installation", "permissions", "networks")]
BASE: Obj = {
    "apiVersion": "disagg.dev/v1alpha1",
    "kind": "DisaggDeployment",
    "metadata": {"name": "chat"},
    "spec": {"model": {"uri": "file:///models/stdlib-llama"}, "prefill": {}, "decode": {}},
}
# What is neither a command nor a resource, by its first words, and why.
NOT_RUN = {
    ("docs/rollouts.md", "Canary: canary:"): "what the condition says in the middle of a canary",
    ("docs/permissions.md", "spec.decode.podTemplate.spec.hostNetwork:"): "what a condition says",
    ("docs/networks.md", "apiVersion: resource.k8s.io/v1"): "is dry-run by test_golden_on_apiserver.py",
    ("docs/operator.md", '{"keys": ['): "a file of API keys, which tests/router/test_key_file.py reads",
    ("docs/permissions.md", "policy:"): "values of the chart, which tests/operator/test_policy.py reads",
}
CONTENT: dict[str, Obj] = {
    SECRET.kind: {},
    CONFIG_MAP.kind: {},
    PERSISTENT_VOLUME_CLAIM.kind: {
        "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
    },
    PRIORITY_CLASS.kind: {"value": 1000},
    RUNTIME_CLASS.kind: {"handler": "runc"},
    RESOURCE_CLAIM_TEMPLATE.kind: {
        "spec": {"spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": "dranet.net"}}]}}}
    },
}


def excluded(block: Block) -> bool:
    return any(block.page == page and block.text.startswith(words) for page, words in NOT_RUN)


def merged(base: Any, part: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(part, Mapping):
        return part
    return {**base, **{key: merged(base.get(key), value) for key, value in part.items()}}


def resource_of(block: Block) -> Obj:
    """Return the resource of a block; a part of a spec is put into a small one."""
    part = yaml.safe_load(block.text)
    found: Obj = part if "kind" in part else merged(BASE, part)
    return found


def yaml_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page, YAML) if not excluded(block)]


def test_every_block_is_run_or_excluded_with_a_reason() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    for block in found:
        commands_only = all(line.startswith("$ ") for line in block.text.splitlines())
        known = (block.language == CONSOLE and commands_only) or block.language == YAML
        assert known or excluded(block), block
    for page, words in NOT_RUN:
        assert [b for b in found if b.page == page and b.text.startswith(words)], f"{page}: {words} is not there"


async def provide(cluster: Cluster, ref: Reference) -> None:
    """Create what a resource refers to."""
    kind, name = ref.target.resource, ref.target.name
    if kind is NETWORK_ATTACHMENT:
        return await cluster.attach_network(name)
    namespace = cluster.namespace if kind.namespaced else None
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, **CONTENT[kind.kind]}
    body |= {"stringData": {ref.key: "x"}} if kind is SECRET and ref.key else {}
    params = {"fieldManager": "test", "force": "true"}
    await cluster.raw("PATCH", kind.path(namespace, name), body, "application/apply-patch+yaml", params)
    return None


async def apply_all(cluster: Cluster) -> dict[str, Block]:
    """Apply the resources of all pages, and what they refer to; return their blocks by name."""
    found = {f"r{number}": block for number, block in enumerate(yaml_blocks())}
    await cluster.attach_network("any")
    for name, block in found.items():
        resource = resource_of(block)
        for ref in references_of(parse_file(resource)):
            await provide(cluster, ref)
        await cluster.apply_resource(name, **resource["spec"])
    return found


async def are_accepted(cluster: Cluster, resources: Mapping[str, Block]) -> None:
    for name, block in resources.items():

        async def judged(name: str = name) -> dict[str, Obj]:
            status = (await cluster.resource(name))["status"]
            return {c["type"]: c for c in status["conditions"]}

        found = await eventually(f"{block} is judged", judged, 180.0)
        assert found["Accepted"]["status"] == "True", f"{block}: {found['Accepted']['message']}"
        assert "Warning" not in found, f"{block}: {found['Warning']['message']}"


async def test_the_resources_of_the_pages_are_accepted_and_the_commands_of_docs_operator_md_work(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    shell, kubelets = Shell(server, tmp_path, cluster.namespace), Kubelets(cluster)
    (tmp_path / "chat.yaml").write_text(blocks("docs/operator.md", YAML)[0].text)
    async with operator(server, tmp_path, cluster.namespace), kubelets.running(free_port()):
        said = [(line, await asyncio.to_thread(shell.run, line)) for line in commands("docs/operator.md")]
        # The commands create Secrets that the resources name.
        await are_accepted(cluster, await apply_all(cluster))
    by_line = dict(said)
    assert "RolloutComplete" in by_line["disagg rollout status chat"]
    assert by_line["kubectl delete dd chat"].startswith('disaggdeployment.disagg.dev "chat" deleted')
    shown = next(out for line, out in said if "range .status.conditions" in line)
    assert "Ready=True Ready: serving as specified\n" in shown
