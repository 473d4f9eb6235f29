"""Tests that a real API server takes the objects of the golden files, by a dry run.

Virtual functions, device plugins and the accelerators of other makers are on no machine here: this
is as far as what is rendered for them can be tried.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml

pytestmark = pytest.mark.apiserver

GOLDEN = sorted((Path(__file__).resolve().parents[2] / "golden").glob("*.yaml"))
PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/default/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
    "Service": "/api/v1/namespaces/default/services",
    "NetworkAttachmentDefinition": "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions",
}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_object_is_accepted_without_a_warning(multus_client: httpx.Client, path: Path) -> None:
    for rendered in yaml.safe_load_all(path.read_text()):
        if rendered["kind"] in PATHS:
            params = {"fieldValidation": "Strict", "dryRun": "All"}
            answer = multus_client.post(PATHS[rendered["kind"]], params=params, json=rendered)
            assert answer.status_code == 201, answer.text
            assert "Warning" not in answer.headers
