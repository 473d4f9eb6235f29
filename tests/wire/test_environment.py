"""Tests that the names of environment variables stand once, and are the fields of the settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from tests.operator.api.resources import good
from tests.operator.desired.facts import FACTS

from disagg_adapter.settings import Settings as AdapterSettings
from disagg_operator.api import parse
from disagg_operator.desired import render
from disagg_operator.desired.local_process import router_process
from disagg_operator.settings import OperatorSettings
from disagg_router.settings import Settings as RouterSettings
from disagg_wire import environment
from disagg_wire.environment import (
    AdapterOption,
    AdapterVariable,
    OperatorVariable,
    RouterOption,
    RouterVariable,
    WorkerOption,
    WorkerVariable,
    fields_in,
    variable_of,
)
from disagg_worker.settings import Settings as WorkerSettings

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "names", "read_elsewhere"),
    [
        (WorkerSettings, [*WorkerVariable, *WorkerOption], {WorkerOption.KERNELS}),
        (AdapterSettings, [*AdapterVariable, *AdapterOption], set()),
        (RouterSettings, [*RouterVariable, *RouterOption], set()),
        (OperatorSettings, [*OperatorVariable], {OperatorVariable.USE_KUBECONFIG}),
    ],
    ids=["worker", "adapter", "router", "operator"],
)
def test_each_variable_is_a_field_of_the_settings_and_each_field_a_variable(
    settings: type[BaseModel], names: Iterable[str], read_elsewhere: set[str]
) -> None:
    """The variables of model hubs (HF_*) are read by their own library."""
    ours = {str(name) for name in names if name.startswith(environment.PREFIX)}
    assert ours - read_elsewhere == {variable_of(field) for field in settings.model_fields}


@pytest.mark.parametrize(
    ("variables", "options"),
    [(WorkerVariable, WorkerOption), (AdapterVariable, AdapterOption), (RouterVariable, RouterOption)],
    ids=["worker", "adapter", "router"],
)
def test_the_operator_either_sets_a_variable_or_leaves_it(variables: type[StrEnum], options: type[StrEnum]) -> None:
    assert set(variables) & set(options) == set()


def _rendered_router(spec: dict[str, Any]) -> set[str]:
    """Return the names in the environment of the router's container."""
    objects: list[Any] = render(parse(good(**spec)), FACTS)
    (router,) = (o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"].endswith("-router"))
    (container,) = router["spec"]["template"]["spec"]["containers"]
    return {e["name"] for e in container["env"]}


def test_the_operator_sets_just_the_listed_variables_of_routers() -> None:
    """The variables of workers have such a test in tests/operator/api/test_reserved.py."""
    adapters = {"uri": "hf://a/b", "adapters": [{"name": "sql", "uri": "hf://a/sql"}]}
    zero = {"model": adapters, "engine": {"type": "vllm"}, "scaling": {"scaleToZero": {}}}
    split = {"upstream": {"url": "http://vllm:8000", "percent": 5}, "localPrefillMaxTokens": 0, "liveness": {}}
    secrets = {"headersSecretRef": {"name": "otlp"}, "caSecretRef": {"name": "otlp"}}
    traced = {"observability": {"tracing": {"endpoint": "https://c:4318", "trustParent": True, **secrets}}}
    specs: list[dict[str, Any]] = [{}, {"router": {"apiKeysSecretRef": {"name": "keys"}, **split}}, zero, traced]
    rendered = set().union(*map(_rendered_router, specs))
    local = set(router_process(parse(good()), 8080, "/key", "/members.json").environment)
    assert rendered == {str(name) for name in RouterVariable}
    assert local <= rendered


def test_the_chart_sets_variables_that_the_operator_reads() -> None:
    text = (REPO / "helm/disagg/templates/deployment.yaml").read_text()
    named = set(re.findall(r"DISAGG_\w+", text))
    assert {OperatorVariable.WORKER_IMAGE, OperatorVariable.ROUTER_IMAGE} <= named
    assert named <= {str(name) for name in OperatorVariable}


def test_the_fields_of_an_environment_are_those_of_our_variables_that_are_not_empty() -> None:
    found = fields_in({"DISAGG_KV_PORT": "1", "DISAGG_ROLE": "", "HF_TOKEN": "x", "PATH": "/bin"})
    assert found == {"kv_port": "1"}
    assert [variable_of(field) for field in found] == [WorkerVariable.KV_PORT]


@pytest.mark.parametrize(
    "kind",
    [
        WorkerVariable,
        WorkerOption,
        AdapterVariable,
        AdapterOption,
        RouterVariable,
        RouterOption,
        OperatorVariable,
    ],
)
def test_a_member_has_the_name_of_its_variable(kind: type[StrEnum]) -> None:
    assert {v.value.removeprefix("DISAGG_") for v in kind} == {v.name for v in kind}


@given(st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True), st.text(min_size=1))
def test_a_field_is_read_from_the_variable_of_its_name(field: str, value: str) -> None:
    assert fields_in({variable_of(field): value}) == {field: value}


def test_a_refusal_names_every_wrong_variable() -> None:
    with pytest.raises(ValidationError) as wrong:
        RouterSettings.model_validate({"model_name": "", "poll_interval_s": 0})
    told = str(environment.refused(wrong.value.errors()))
    for name in ("DISAGG_MODEL_NAME: ", "DISAGG_POLL_INTERVAL_S: ", "DISAGG_CLUSTER_KEY_FILE: "):
        assert name in told
