"""Tests that a real API server takes the objects of the golden files, by a dry run.

Virtual functions, device plugins and the accelerators of other makers are on no machine here: this
is as far as what is rendered for them can be tried.
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
import yaml

pytestmark = pytest.mark.apiserver

GOLDEN = sorted((Path(__file__).resolve().parents[2] / "golden").glob("*.yaml"))
STRICT = {"fieldValidation": "Strict", "dryRun": "All"}
CLAIM_TEMPLATES = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaimtemplates"
PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/default/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
    "Service": "/api/v1/namespaces/default/services",
    "NetworkAttachmentDefinition": "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions",
}


def test_the_claim_template_of_the_page_is_accepted(multus_client: httpx.Client) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "networks.md").read_text()
    (text,) = re.findall(r"^```yaml\n(apiVersion: resource.k8s.io/v1\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    answer = multus_client.post(CLAIM_TEMPLATES, params=STRICT, json=yaml.safe_load(text))
    assert answer.status_code == 201, answer.text
    assert "Warning" not in answer.headers


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_object_is_accepted_without_a_warning(multus_client: httpx.Client, path: Path) -> None:
    for rendered in yaml.safe_load_all(path.read_text()):
        if rendered["kind"] in PATHS:
            answer = multus_client.post(PATHS[rendered["kind"]], params=STRICT, json=rendered)
            assert answer.status_code == 201, answer.text
            assert "Warning" not in answer.headers
