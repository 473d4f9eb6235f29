"""Tests of the KV that decode receives, which must be, bit for bit and block by block, the KV that
it would have computed itself with the same chunks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.client import Line, body, tokens_of
from tests.worker.server.rig import Pair, Running, pair, prompt, running

from disagg_worker.engine.core import TorchEngine

SIZE = 16


def engine_of(worker: Running) -> TorchEngine:
    assert worker.worker.node is not None
    engine = worker.worker.node.engine
    assert isinstance(engine, TorchEngine)
    return engine


def digests(worker: Running, tokens: list[int]) -> list[str]:
    """Return the digest of each full block of these tokens, all layers, in the worker's cache."""
    engine = engine_of(worker)
    assert engine._names is not None
    names: list[bytes] = []
    engine._names.extend(names, tokens, "")
    out = []
    for name in names:
        ref = engine._store.pool.find(name)
        assert ref is not None
        block = engine._store.pool.check(ref)
        out.append(hashlib.sha256(engine._memory.read(block)).hexdigest())
    return out


async def transferred(p: Pair, request: Line) -> list[int]:
    """Return the prompt and the output of a request that both workers compute."""
    first, rest = await p.generate(request)
    assert first[1]["kv_bytes"] > 0
    return [*request["tokens"], *(token for _, token in tokens_of(first + rest))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"max_batch_tokens": 48}, {"max_batch_tokens": 64, "threads": 2}],
    ids=["whole", "chunks", "2 threads"],
)
async def test_each_block_is_the_same_bits(tiny: Path, dtype: str, changes: dict[str, Any]) -> None:
    common = {"dtype": dtype, "max_model_len": 1024, "block_size_tokens": SIZE} | changes
    async with pair(tiny, **common) as p, running("decode", tiny, **common) as alone:
        for n in (16, 33, 200):
            request = body(prompt(n, n), max_new_tokens=40, temperature=0.7)
            tokens = await transferred(p, request)
            own = await alone.lines("decode", request | {"mode": "local"})
            assert [*request["tokens"], *(token for _, token in tokens_of(own))] == tokens
            # The blocks of the prompt came by transfer, and those of the output were computed from
            # them.
            found, wanted = digests(p.decode, tokens[:-1]), digests(alone, tokens[:-1])
            assert len(found) == (n + 39) // SIZE
            assert found == wanted
            assert found[: n // SIZE] == digests(p.prefill, request["tokens"])
        await p.empty()
