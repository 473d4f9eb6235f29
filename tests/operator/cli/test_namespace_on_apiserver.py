"""`disagg rollout` looks in the namespace of the kubeconfig's context, as kubectl does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.apiserver import ApiServer

from disagg_operator.api.base import API_VERSION
from disagg_operator.cli.entry import main
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT

pytestmark = pytest.mark.apiserver
_NUMBERS = itertools.count()


class Teams:
    """Two namespaces with a deployment `chat` each; the context is in the first one."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.names = [f"namespace-test-{next(_NUMBERS)}" for _ in range(2)]
        for name in self.names:
            self._post("/api/v1/namespaces", {"metadata": {"name": name}})
            spec = {"model": {"uri": "file:///models/m"}, "prefill": {}, "decode": {}}
            content = {"apiVersion": API_VERSION, "kind": "DisaggDeployment", "metadata": {"name": "chat"}}
            self._post(DISAGG_DEPLOYMENT.path(name), content | {"spec": spec})

    def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = self._client.post(path, json=body)
        assert answer.status_code == 201, answer.text

    def paused(self) -> list[bool]:
        found = [self._client.get(DISAGG_DEPLOYMENT.path(name, "chat")).json()["spec"] for name in self.names]
        return [bool(spec.get("rollout", {}).get("paused")) for spec in found]


@pytest.fixture
def teams(crd_server: ApiServer, crd_client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teams:
    found = Teams(crd_client)
    config = json.loads(crd_server.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = found.names[0]
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return found


def rollout(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rollout", *words])
    assert ended.value.code == 0


def test_the_namespace_of_the_context_is_meant_unless_one_is_named(teams: Teams) -> None:
    rollout("pause", "chat")
    assert teams.paused() == [True, False]
    rollout("pause", "chat", "-n", teams.names[1])
    rollout("resume", "chat")
    assert teams.paused() == [False, True]
    with pytest.raises(SystemExit, match="there is no DisaggDeployment default/chat"):
        main(["rollout", "history", "chat", "--namespace", "default"])
