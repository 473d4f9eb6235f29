"""Each variable has one name, one process that reads it and one who sets it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.environment import (
    RESERVED_WORKER_NAMES,
    OperatorVariable,
    RouterOption,
    RouterVariable,
    WorkerOption,
    WorkerVariable,
    fields_in,
    variable_of,
)


def test_what_the_operator_sets_on_workers_is_reserved_and_what_it_leaves_to_users_is_not() -> None:
    assert set(RESERVED_WORKER_NAMES) == {variable.value for variable in WorkerVariable}
    assert list(RESERVED_WORKER_NAMES) == sorted(RESERVED_WORKER_NAMES)
    assert not set(RESERVED_WORKER_NAMES) & {option.value for option in WorkerOption}


def test_a_router_variable_is_set_by_the_operator_or_left_at_its_default() -> None:
    assert not {v.value for v in RouterVariable} & {v.value for v in RouterOption}


@pytest.mark.parametrize("kind", [WorkerVariable, WorkerOption, RouterVariable, RouterOption, OperatorVariable])
def test_a_member_has_the_name_of_its_variable(kind: type[WorkerVariable]) -> None:
    assert {v.value.removeprefix("DISAGG_") for v in kind} == {v.name for v in kind}


@given(st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True), st.text(min_size=1))
def test_a_field_is_read_from_the_variable_of_its_name(field: str, value: str) -> None:
    assert fields_in({variable_of(field): value}) == {field: value}


def test_what_is_empty_or_of_somebody_else_is_not_set() -> None:
    assert fields_in({"DISAGG_ROLE": "", "PATH": "/bin", "HF_TOKEN": "t", "DISAGG_PORT": "8000"}) == {"port": "8000"}
