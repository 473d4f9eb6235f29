"""Today's code against what release 0.1.0 stored, rendered and sent: nothing of it may be misread (tests/releases/0.1.0/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_operator import plan, replicas
from disagg_operator.api import parse_file
from disagg_operator.autoscaling import codec
from disagg_operator.desired import Facts, Images, render

RELEASE = Path(__file__).parent / "0.1.0"
CORPUS = sorted(path.stem for path in (RELEASE / "corpus").glob("*.yaml"))
Obj = dict[str, Any]


def _json(path: str) -> Any:
    return json.loads((RELEASE / path).read_text())


def _resource(name: str) -> Obj:
    found: Obj = yaml.safe_load((RELEASE / "corpus" / f"{name}.yaml").read_text())
    return found


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


# ---- resources ----


def test_the_corpus_has_forty_resources() -> None:
    assert len(CORPUS) == 40
    assert sorted(path.stem for path in (RELEASE / "rendered").glob("*.json")) == CORPUS


@pytest.mark.parametrize("name", CORPUS)
def test_a_stored_resource_becomes_the_same_objects(name: str) -> None:
    """An object that differs restarts every pod of every user who upgrades."""
    raw, recorded = _resource(name), _json(f"rendered/{name}.json")
    facts = Facts(**recorded["facts"] | {"images": Images(**recorded["facts"]["images"])})
    assert _plain(render(parse_file(raw), facts)) == recorded["objects"]


@pytest.mark.parametrize("name", CORPUS)
def test_a_stored_resource_is_planned_as_it_was(name: str) -> None:
    recorded = _json(f"rendered/{name}.json")
    found = plan.read(_resource(name))
    assert _plain([found.attachment, found.rdma, found.interface]) == [recorded["plan"][k] for k in ("attachment", "rdma", "interface")]
    assert _plain(codec.plain(found.scaling)) == recorded["plan"]["scaling"]
    for role, declared in found.declared.items():
        first = replicas.decide(declared, None, None, suspended=found.scaling.suspended)
        assert first.count == recorded["facts"]["replicas"][role]
        assert first.declared == recorded["facts"]["declared"].get(role)


def _uncovered(schema: Obj, values: list[Any], path: str) -> list[str]:
    """Fields, choices and truth values of a schema that no value uses."""
    if not values:
        return [path]
    missing = [f"{path}={choice}" for choice in schema.get("enum", ()) if choice not in values]
    if schema.get("type") == "boolean":
        missing += [f"{path}={choice}" for choice in (True, False) if choice not in values]
    for name, inner in schema.get("properties", {}).items():
        missing += _uncovered(inner, [v[name] for v in values if name in v], f"{path}.{name}")
    if "items" in schema:
        missing += _uncovered(schema["items"], [item for v in values for item in v], f"{path}[]")
    return missing


def _schema(crd: Obj) -> Obj:
    (version,) = crd["spec"]["versions"]
    found: Obj = version["schema"]["openAPIV3Schema"]
    return found


def test_the_corpus_uses_every_field_and_every_choice() -> None:
    crd = yaml.safe_load((RELEASE / "crds/disagg.dev_disaggdeployments.yaml").read_text())
    assert _uncovered(_schema(crd)["properties"]["spec"], [_resource(name)["spec"] for name in CORPUS], "spec") == []
