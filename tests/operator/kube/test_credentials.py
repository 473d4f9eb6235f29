"""The namespace that commands use where none is named is the one that kubectl would use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from disagg_operator.kube.credentials import NoCredentials, load


def kubeconfig(path: Path, current: str, *contexts: dict[str, Any]) -> str:
    """Write a kubeconfig and return its path."""
    cluster = {"name": "t", "cluster": {"server": "http://127.0.0.1:1"}}
    named = [{"name": f"c{i}", "context": {"cluster": "t", "user": "t"} | more} for i, more in enumerate(contexts)]
    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": current, "clusters": [cluster],
        "users": [{"name": "t", "user": {}}], "contexts": named,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("current", "wanted"), [("c0", "default"), ("c1", "team-a"), ("c2", "team-b"), ("c3", "default")]
)
def test_the_namespace_is_that_of_the_current_context(tmp_path: Path, current: str, wanted: str) -> None:
    contexts: list[dict[str, Any]] = [{}, {"namespace": "team-a"}, {"namespace": "team-b"}, {"namespace": ""}]
    path = kubeconfig(tmp_path / "config", current, *contexts)
    assert load({"KUBECONFIG": path}, tmp_path).namespace == wanted


def test_a_context_that_does_not_exist_gives_no_credentials(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "c9", {})
    with pytest.raises(NoCredentials, match="c9"):
        load({"KUBECONFIG": path}, tmp_path)


@pytest.mark.parametrize(("content", "wanted"), [("team-a\n", "team-a"), ("", "default"), (None, "default")])
def test_the_namespace_inside_a_cluster_is_that_of_the_pod(tmp_path: Path, content: str | None, wanted: str) -> None:
    (tmp_path / "token").write_text("secret")
    if content is not None:
        (tmp_path / "namespace").write_text(content)
    assert load({}, tmp_path).namespace == wanted
