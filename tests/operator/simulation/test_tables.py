"""Tables and numbers are the same memory to Python and to compiled code, in the declared types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

from disagg_operator.simulation.compiled import njit
from disagg_operator.simulation.tables import (
    Floats,
    Int8s,
    Int32s,
    compiled_numbers,
    compiled_table,
    plain_numbers,
    table,
)

compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")


class Rows(NamedTuple):
    at_s: Floats
    made: Int32s
    state: Int8s


@dataclass
class Numbers:
    share: float = 0.5
    count: int = 3


class Both(NamedTuple):
    rows: Rows
    numbers: Numbers


@njit  # type: ignore[untyped-decorator]
def _visit(s: Both, r: int) -> float:
    s.rows.made[r] += 2
    s.rows.at_s[r] = s.numbers.share * s.rows.made[r]
    s.numbers.count += 1
    return float(s.rows.at_s[r])


def test_a_table_holds_what_it_was_given_and_zeros_in_the_declared_types() -> None:
    rows = table(Rows, 3, at_s=np.inf, made=[1, 2, 3])
    assert [column.dtype for column in rows] == [np.float64, np.int32, np.int8]
    assert [column.tolist() for column in rows] == [[np.inf] * 3, [1, 2, 3], [0] * 3]
    assert table(Rows, (2, 5)).at_s.shape == (2, 5)


def test_functions_write_by_name_to_what_python_reads() -> None:
    rows = table(Rows, 4)
    s = Both(compiled_table(rows), compiled_numbers(Numbers(share=0.25), Numbers))
    assert _visit(s, 1) == _visit(Both(compiled_table(rows), s.numbers), 2) == 0.5
    assert rows.made.tolist() == [0, 2, 2, 0]
    assert rows.at_s.tolist() == [0.0, 0.5, 0.5, 0.0]
    numbers = plain_numbers(s.numbers, Numbers)
    assert numbers == Numbers(share=0.25, count=5)
    assert [type(value) for value in vars(numbers).values()] == [float, int]


@compiled_only
def test_numbers_have_the_declared_types_whatever_python_holds() -> None:
    numbers: Any = compiled_numbers(Numbers(share=1, count=True), Numbers)
    assert numbers.dtype["share"] == np.float64
    assert numbers.dtype["count"] == np.int64
    assert numbers.item() == (1.0, 1)
