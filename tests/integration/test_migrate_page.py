"""The resource and the commands of docs/migrate.md, as they stand there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.administrator import Shell
from tests.integration.apiserver import ApiServer
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.integration.pages import YAML, blocks, commands
from tests.operator.cli.test_assess_command import Server, serving
from tests.ports import free_port

from disagg_operator.kube.resources import DEPLOYMENT
from disagg_operator.vocabulary import Obj
from disagg_wire import series

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

PAGE = "docs/migrate.md"
EXISTING = "http://vllm.prod:8000"


@pytest.fixture
def existing() -> Iterator[Server]:
    """The metrics of the service that runs today."""
    found = Server()
    found.answers["/metrics"] = serving(model="llama-3.1-8b")
    yield found
    found.close()


async def upstream_of(cluster: Cluster) -> dict[str, str]:
    """Return what the routers are told of the existing service."""
    found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-router")
    assert found is not None
    (container,) = found["spec"]["template"]["spec"]["containers"]
    return {v["name"]: v["value"] for v in container["env"] if v["name"].startswith("DISAGG_UPSTREAM_")}


async def test_the_commands_of_the_page(server: ApiServer, cluster: Cluster, existing: Server, tmp_path: Path) -> None:
    shell, kubelets = Shell(server, tmp_path, cluster.namespace), Kubelets(cluster)
    (tmp_path / "chat.yaml").write_text(blocks(PAGE, YAML)[0].text)
    assess, *others = commands(PAGE)
    said = await asyncio.to_thread(shell.run, "command " + assess.replace(EXISTING, existing.url).replace("60s", "1s"))
    assert "Stay with one pool" in said
    seen: list[str | None] = []
    templates: list[Obj] = []
    async with operator(server, tmp_path, cluster.namespace), kubelets.running(free_port()):
        for line in others:
            await asyncio.to_thread(shell.run, line)
            percent = re.search(r'"percent":(\d+)', line)
            wanted = {} if '"remove"' in line else {
                "DISAGG_UPSTREAM_URL": EXISTING, "DISAGG_UPSTREAM_PERCENT": percent[1] if percent else "100",
            }  # fmt: skip

            async def told(wanted: dict[str, str] = wanted) -> bool:
                return await upstream_of(cluster) == wanted

            await eventually(f"the routers know of {wanted}", told, 60.0)
            worker = await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-decode")
            templates += [worker["spec"]["template"]] if worker is not None else []
            seen.append(wanted.get("DISAGG_UPSTREAM_PERCENT"))
        found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-decode")
    assert seen == ["100", "100", "95", "50", "0", "100", None]
    # No worker was replaced for it.
    assert found is not None
    assert found["spec"]["template"] == templates[0]


def test_the_page_names_series_that_routers_have() -> None:
    (block,) = blocks(PAGE, "promql")
    text = "".join(b.text for b in blocks(PAGE)) + Path(__file__).parents[2].joinpath(PAGE).read_text()
    named = set(re.findall(r"disagg_router_split_\w+", text))
    assert named == {series.ROUTER_SPLIT_REQUESTS, series.ROUTER_SPLIT_TTFT_SECONDS, series.ROUTER_SPLIT_TPOT_SECONDS}
    assert f'{series.WITHIN}="{series.TRUE}"' in block.text
    assert f"by ({series.BACKEND})" in block.text
