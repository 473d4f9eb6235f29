"""The HTTPRoute of docs/migrate.md, judged by the CRDs that Gateway API publishes.

No Gateway runs: whether requests are shared so is up to each implementation.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.integration.administrator import Shell
from tests.integration.apiserver import REPO, ApiServer
from tests.integration.pages import YAML, blocks
from tests.operator.api.resources import good

from disagg_operator.api.v1alpha1 import read
from disagg_operator.desired import Facts, Images, render
from disagg_operator.kube.resources import SERVICE, name_of

PAGE, MODULE = "docs/migrate.md", "sigs.k8s.io/gateway-api"
KINDS = ("httproutes", "referencegrants")


@pytest.fixture(scope="module")
def crds() -> list[Path]:
    """The CRDs of the module that e2e/gomods/gateway pins."""
    download = ["go", "-C", str(REPO / "e2e/gomods/gateway"), "mod", "download", "-json", MODULE]
    done = subprocess.run(download, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(json.loads(done.stdout)["Dir"]) / "config/crd/standard"
    return [folder / f"gateway.networking.k8s.io_{kind}.yaml" for kind in KINDS]


@pytest.mark.apiserver
def test_the_route_of_the_page_is_one(server: ApiServer, crds: list[Path], tmp_path: Path) -> None:
    (block,) = (b for b in blocks(PAGE, YAML) if "HTTPRoute" in b.text)
    shell = Shell(server, tmp_path)
    for crd in crds:
        shell.run(f"kubectl apply --server-side -f {crd}")
    shell.run(f"kubectl wait --for=condition=Established {' '.join(f'-f {crd}' for crd in crds)} --timeout=60s")
    shell.run("kubectl create namespace prod --dry-run=client -o yaml | kubectl apply -f -")

    def judge(text: str) -> str:
        (tmp_path / "route.yaml").write_text(text)
        return shell.run("kubectl apply --server-side --dry-run=server --validate=strict -f route.yaml")

    said = judge(block.text)
    assert "httproute.gateway.networking.k8s.io/chat serverside-applied (server dry run)" in said
    assert "referencegrant.gateway.networking.k8s.io/chat serverside-applied (server dry run)" in said
    for right, wrong, word in (
        ("weight: 5}", "weight: 5, share: 5}", "share"),
        ("weight: 5}", "weight: -1}", "weight"),
        ("request: 660s", "request: 11 minutes", "timeouts"),
        ("value: /v1", "value: v1", "absolute path"),
    ):
        assert right in block.text
        with pytest.raises(AssertionError, match=word):
            judge(block.text.replace(right, wrong))


def test_the_route_leads_to_the_service_of_the_routers() -> None:
    (block,) = (b for b in blocks(PAGE, YAML) if "HTTPRoute" in b.text)
    route, grant = yaml.safe_load_all(block.text)
    existing, ours = route["spec"]["rules"][0]["backendRefs"]
    rendered = render(read(good()), Facts("u", {"prefill": 1, "decode": 1}, images=Images("w", "r")))
    (service,) = (o for o in rendered if o["kind"] == SERVICE.kind and name_of(o) == ours["name"])
    assert ours["port"] in [port["port"] for port in service["spec"]["ports"]]
    assert existing["weight"] + ours["weight"] == 100
    assert (grant["metadata"]["namespace"], grant["spec"]["to"][0]["name"]) == (existing["namespace"], existing["name"])
