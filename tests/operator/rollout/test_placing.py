"""The names and selectors of the Deployments of revisions."""

from __future__ import annotations

from disagg_operator.rollout.placing import placed
from disagg_operator.rollout.values import WorkersKey
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_REVISION

NEW = ("decode", "new")


def deployment(name: str = "chat-decode", **labels: str) -> Obj:
    match = {"app": "x", **labels}
    return {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": match}, "replicas": 1}}


def place(live: dict[WorkersKey, Obj], *with_pods: WorkersKey) -> tuple[str, dict[str, str]]:
    found = placed(deployment(), NEW, live, with_pods)
    return found["metadata"]["name"], found["spec"]["selector"]["matchLabels"]


def test_the_first_one_of_a_pool_has_its_name() -> None:
    other_pool = {("prefill", "old"): deployment("chat-prefill")}
    assert place({}) == place(other_pool) == ("chat-decode", {"app": "x"})


def test_one_that_exists_keeps_its_name_and_its_selector() -> None:
    assert place({NEW: deployment("any", a="b")}) == ("any", {"app": "x", "a": "b"})


def test_another_revision_has_its_own_in_name_and_selector() -> None:
    old = {("decode", "old"): deployment()}
    assert place(old, ("decode", "old")) == ("chat-decode-new", {"app": "x", LABEL_REVISION: "new"})
    later = {("decode", "old"): deployment("chat-decode-old", **{LABEL_REVISION: "old"})}
    assert place(later)[0] == "chat-decode-new"


def test_one_without_pods_takes_the_new_revision() -> None:
    assert place({("decode", "old"): deployment()}) == ("chat-decode", {"app": "x"})


def test_a_selector_of_another_revision_is_not_taken_over() -> None:
    old = {("decode", "old"): deployment(**{LABEL_REVISION: "old"})}
    assert place(old) == ("chat-decode-new", {"app": "x", LABEL_REVISION: "new"})
