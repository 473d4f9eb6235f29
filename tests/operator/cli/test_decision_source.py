"""The decisions of a cluster are those of all its operators, each of which led for a time."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.operator.cli.test_explain_command import recorded, run

from disagg_operator.cli import decision_source
from disagg_operator.cli.entry import main
from disagg_operator.controller.decisions_right import KEY_HEADER

__all__ = ["recorded"]


class Cluster(ThreadingHTTPServer):
    """An API server that lists the pods of `pages` and proxies to them; None does not answer."""

    pages: dict[str, str | None] = {}
    namespace = "default"
    """That of the deployment."""
    key = ""
    """What the operators ask for; "" for operators of earlier releases."""
    secret: int | str = 404
    """The answer for the Secret: the key in it, or a status."""
    makes: str = ""
    """What is in the Secret once an operator was asked."""


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/v1/pods":
            spec = {"containers": [{"env": [{"name": "DISAGG_LEASE_NAME", "value": "op"}]}]}
            status = {"phase": "Running"}
            pods = [{"metadata": {"name": n, "namespace": "sys"}, "spec": spec, "status": status} for n in self._names]
            return self._answer(200, json.dumps({"items": pods}))
        if path == "/api/v1/namespaces/sys/secrets/op-decisions":
            if isinstance(self.server.secret, int):
                return self._answer(self.server.secret, '{"message": "secrets is forbidden"}')
            content = base64.b64encode(self.server.secret.encode()).decode()
            return self._answer(200, json.dumps({"data": {"key": content}}))
        if "/proxy/decisions/" in path and self.headers.get(KEY_HEADER, "") != self.server.key:
            self.server.secret = self.server.makes or self.server.secret
            return self._answer(401, json.dumps({"message": f"{KEY_HEADER} is missing or wrong"}))
        for name in self._names:
            if path == f"/api/v1/namespaces/sys/pods/{name}:8081/proxy/decisions/{self.server.namespace}/chat":
                page = self.server.pages[name]
                return self._answer(503, "{}") if page is None else self._answer(200, page)
        return self._answer(404, "{}")

    @property
    def _names(self) -> list[str]:
        return sorted(self.server.pages)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    context = getattr(request, "param", {})
    with Cluster(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{"name": "t", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "t", "user": {}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t", **context}}],
        }  # fmt: skip
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server
        server.shutdown()


@pytest.mark.parametrize("others", [("",), (None,), (None, "")], ids=["stands by", "does not answer", "both"])
def test_the_decisions_are_those_of_the_operator_that_led(
    cluster: Cluster, recorded: str, others: tuple[str | None, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.pages = {"operator-z": recorded, **{f"operator-{i}": page for i, page in enumerate(others)}}
    assert "workers of work expected" in run(capsys, "explain", "chat")


def test_no_answer_of_any_operator_is_told(cluster: Cluster) -> None:
    cluster.pages = {"operator-1": None}
    with pytest.raises(SystemExit, match=r"operator-1.*503"):
        main(["explain", "chat"])


@pytest.mark.parametrize("cluster", [{"namespace": "team-a"}], indirect=True)
def test_the_deployment_is_in_the_namespace_of_the_context_unless_one_is_named(
    cluster: Cluster, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.pages = {"operator-1": recorded}
    cluster.namespace = "team-a"
    assert "workers of work expected" in run(capsys, "explain", "chat")
    cluster.namespace = "team-b"
    assert "workers of work expected" in run(capsys, "explain", "chat", "-n", "team-b")


KEY = "k" * 64


@pytest.mark.parametrize(("secret", "makes"), [(KEY, ""), (404, KEY), ("o" * 64, KEY)], ids=["is", "is made", "is new"])
def test_whoever_may_get_the_secret_reads_the_decisions(
    cluster: Cluster, recorded: str, capsys: pytest.CaptureFixture[str], secret: int | str, makes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(decision_source, "_READ_AGAIN_S", 0.0)
    cluster.pages = {"operator-1": recorded}
    cluster.key, cluster.secret, cluster.makes = KEY, secret, makes
    assert "workers of work expected" in run(capsys, "explain", "chat")


@pytest.mark.parametrize("secret", [403, 404, "o" * 64])
def test_whoever_may_not_learns_which_right_it_takes(
    cluster: Cluster, recorded: str, secret: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_source, "_READ_AGAIN_S", 0.0)
    cluster.pages = {"operator-1": recorded}
    cluster.key, cluster.secret = KEY, secret
    with pytest.raises(SystemExit, match=r"may get the Secret op-decisions in the namespace sys"):
        main(["explain", "chat"])


def test_operators_of_earlier_releases_ask_for_no_key(
    cluster: Cluster, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.pages = {"operator-1": recorded}
    cluster.key, cluster.secret = "", 403
    assert "workers of work expected" in run(capsys, "explain", "chat")
