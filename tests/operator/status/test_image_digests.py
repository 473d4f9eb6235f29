"""A tag that was moved is told by the digests of the pods."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.status.image_digests import moved_tags


def pod(image: str, image_id: str | None, role: str = "prefill", revision: str = "a", **meta: Any) -> dict[str, Any]:
    labels = {"disagg.dev/pool": role, "disagg.dev/revision": revision}
    statuses = [] if image_id is None else [{"name": "main", "image": "docker.io/" + image, "imageID": image_id}]
    return {
        "metadata": {"name": "p", "labels": labels, **meta},
        "spec": {"containers": [{"name": "main", "image": image}]},
        "status": {"containerStatuses": statuses},
    }


ONE, OTHER = "docker.io/w@sha256:" + "1" * 64, "docker-pullable://docker.io/w@sha256:" + "2" * 64


def test_two_digests_under_one_tag_are_told_with_the_number_of_pods() -> None:
    ((reason, message),) = moved_tags([pod("w:1", ONE), pod("w:1", OTHER), pod("w:1", ONE), pod("w:1", None)])
    assert reason == "TagMoved"
    assert message == (
        "pods of prefill run different images as w:1: sha256:111111111111 in 2 and sha256:222222222222 in 1; "
        "name the image by its digest"
    )


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param([], id="no pods"),
        pytest.param([pod("w:1", ONE), pod("w:1", ONE)], id="one digest"),
        pytest.param([pod("w:1", ONE), pod("w:1", OTHER, revision="b")], id="two revisions"),
        pytest.param([pod("w:1", ONE), pod("w:1", OTHER, role="decode")], id="two roles, which roll one by one"),
        pytest.param([pod("w:1", ONE), pod("w:2", OTHER)], id="two tags"),
        pytest.param([pod("w@sha256:1", ONE), pod("w@sha256:1", OTHER)], id="a digest in the spec"),
        pytest.param([pod("w:1", ONE), pod("w:1", "sha256:" + "3" * 64)], id="an image that was not pulled"),
        pytest.param([pod("w:1", ONE), pod("w:1", OTHER, deletionTimestamp="now")], id="a pod that ends"),
        pytest.param([{"metadata": {"name": "p"}}], id="a pod without a status"),
    ],
)
def test_nothing_else_is_told(pods: list[dict[str, Any]]) -> None:
    assert moved_tags(pods) == ()


def test_an_init_container_counts_as_well() -> None:
    def init(image_id: str) -> dict[str, Any]:
        found = pod("w:1", None)
        found["spec"]["initContainers"] = [{"name": "fetch", "image": "f:1"}]
        found["status"]["initContainerStatuses"] = [{"name": "fetch", "imageID": image_id}]
        return found

    ((_, message),) = moved_tags([init(ONE), init(OTHER)])
    assert "as f:1" in message
