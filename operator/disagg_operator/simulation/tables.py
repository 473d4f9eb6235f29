"""Named columns and named numbers, in the form that compiled code reads fastest.

The columns of a table lie row by row in one block of memory. Python reads them as a named tuple of
arrays, each a view of that block. Compiled code gets the block, one array for the whole table, and
reads it in the same way: `table.column[row]`. numba would compile the named tuple, too, but its
functions would hand on every array of it: they take twice as long to compile, and thrice to run.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast, get_args, get_type_hints

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Int8s = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]

T = TypeVar("T")


def table(kind: type[T], rows: int | tuple[int, int], **columns: Any) -> T:
    """Return a table of a NamedTuple's columns, each annotated as an array of its type.

    A column that is not given holds zeros.
    """
    hints = get_type_hints(kind)
    block = np.zeros(rows, np.dtype([(name, _element(hint)) for name, hint in hints.items()], align=True))
    for name, values in columns.items():
        block[name] = values
    return kind(*(block[name] for name in hints))


def _element(hint: Any) -> Any:
    _, dtype = get_args(hint)
    (element,) = get_args(dtype)
    return element


def compiled_table(named: T) -> T:
    """Return a table as compiled code gets it: over the same memory, and read by the same names."""
    if numba.config.DISABLE_JIT:
        return named
    return cast(T, cast(Any, named)[0].base.view(np.recarray))


def compiled_numbers(named: T, kind: type[T]) -> T:
    """Return an object's numbers, those that `kind` annotates, as compiled code gets them.

    What compiled code writes is in the answer, not in `named`.
    """
    if numba.config.DISABLE_JIT:
        return named
    return cast(T, _numbers(named, kind).view(np.recarray)[0])


def plain_numbers(live: T, kind: type[T]) -> T:
    """Return a new object with the numbers that compiled code has written, as Python has them."""
    values: Any = live if isinstance(live, np.record) else _numbers(live, kind)[0]
    return kind(*values.item())


def _numbers(named: Any, kind: type[Any]) -> npt.NDArray[Any]:
    hints = get_type_hints(kind)
    values = tuple(getattr(named, name) for name in hints)
    return np.array([values], np.dtype(list(hints.items()), align=True))
