"""Tests of the encoding of steps: a step reaches the other ranks unchanged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.backend.interface import Batch, Chunk
from disagg_worker.execution import step_bytes
from disagg_worker.execution.executor import Step

NUMBERS = st.integers(0, 1 << 40)
FEW = st.lists(NUMBERS, max_size=5)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    def tensor(n: int) -> torch.Tensor:
        return torch.tensor(draw(st.lists(NUMBERS, min_size=n, max_size=n)), dtype=torch.long)

    tokens = draw(st.integers(1, 6))
    ids, positions, slots = (tensor(tokens) for _ in range(3))
    last = tensor(draw(st.integers(0, tokens)))
    lists = [tuple(draw(FEW)) for _ in range(3)]
    if draw(st.booleans()):
        width = draw(st.integers(1, 4))
        return Step(
            Batch(
                ids, positions, slots, last, tables=tensor(tokens * width).view(tokens, width), lengths=tensor(tokens)
            ),
            *lists,
        )
    chunks = tuple(
        Chunk(*draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)), tensor(draw(st.integers(1, 4))))
        for _ in range(draw(st.integers(1, 3)))
    )
    return Step(Batch(ids, positions, slots, last, chunks), *lists)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b is None or (a is not None and b is not None and torch.equal(a, b))


@given(NUMBERS, steps())
def test_what_is_encoded_is_decoded(number: int, step: Step) -> None:
    found_number, found = step_bytes.decode(step_bytes.encode(number, step))
    assert found_number == number
    assert (found.load, found.clear, found.export) == (step.load, step.clear, step.export)
    for field in ("token_ids", "positions", "slots", "last", "tables", "lengths"):
        assert _same(getattr(found.batch, field), getattr(step.batch, field))
    assert len(found.batch.chunks) == len(step.batch.chunks)
    for mine, other in zip(found.batch.chunks, step.batch.chunks, strict=True):
        assert (mine.start, mine.stop, mine.first) == (other.start, other.stop, other.first)
        assert torch.equal(mine.table, other.table)


@pytest.mark.parametrize("n", [0, 7, 8, 72, 80, 88])
def test_lengths_that_do_not_belong_together_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="a step of"):
        step_bytes.decode(bytes([1] * n))
