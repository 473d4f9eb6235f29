"""What becomes of the routers in one step of a rollout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.controller.router_turn import RouterTurn, turn
from disagg_operator.rollout.revisions import KnownRevision

ADAPTERS = {"uri": "hf://a/b", "name": "new", "adapters": [{"name": "sql", "uri": "hf://a/sql"}]}
DD = parse(good(model=ADAPTERS, engine={"type": "vllm"}))


def router(name: str | None, adapters: str | None = None, container: str = "main") -> dict[str, Any]:
    env = [{"name": "DISAGG_PORT", "value": "8000"}, {"name": "DISAGG_POD", "valueFrom": {}}]
    env += [] if name is None else [{"name": "DISAGG_MODEL_NAME", "value": name}]
    env += [] if adapters is None else [{"name": "DISAGG_LORA_ADAPTERS", "value": adapters}]
    pod = {"containers": [{"name": "sidecar"}, {"name": container, "env": env}]}
    return {"kind": "Deployment", "metadata": {"name": "chat-router"}, "spec": {"template": {"spec": pod}}}


def revision(**model: Any) -> KnownRevision:
    return KnownRevision("r", 1, "p", "d", None, "", {"model": model} if model else {})


WORKERS = {"kind": "Deployment", "metadata": {"name": "chat-decode"}}
NEW, OLD = router("new", '["sql"]'), router("old", "[]")


@pytest.mark.parametrize(
    ("live", "back", "old_workers", "expected"),
    [
        pytest.param([], None, True, RouterTurn(applied=NEW), id="the first one"),
        pytest.param([OLD], None, False, RouterTurn(applied=NEW), id="nobody else serves"),
        pytest.param([OLD], None, True, RouterTurn(left=OLD), id="old workers may serve"),
        pytest.param([OLD], revision(name="old"), False, RouterTurn(left=OLD), id="back to what it knows"),
        pytest.param([OLD], revision(uri="hf://x/old/"), False, RouterTurn(left=OLD), id="by the name of its URI"),
        pytest.param([NEW], revision(name="old"), True, RouterTurn(applied=OLD), id="back to another name"),
        pytest.param([router(None)], revision(name="old"), False, RouterTurn(left=router(None)), id="of no name"),
        pytest.param(
            [router("new", None, "other")], revision(name="old"), False,
            RouterTurn(left=router("new", None, "other")), id="of no known container",
        ),
    ],
)  # fmt: skip
def test_what_becomes_of_the_routers(
    live: list[Any], back: KnownRevision | None, old_workers: bool, expected: RouterTurn
) -> None:
    rendered = copy.deepcopy(NEW)
    assert turn(DD, [WORKERS, rendered], [WORKERS, *live], back, old_workers=old_workers) == expected
    assert rendered == NEW


def test_the_adapters_are_those_of_the_revision() -> None:
    back = revision(name="old", adapters=[{"name": "a"}, {"name": "b"}])
    assert turn(DD, [NEW], [NEW], back, old_workers=False).applied == router("old", '["a", "b"]')
    assert turn(DD, [], [NEW], back, old_workers=False).left == NEW
    assert revision().model_name == ""
