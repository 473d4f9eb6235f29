"""Tests of a KV cache of 8-bit floats: half the memory, nearly the same tokens, and transfers only
between workers with the same dtype.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.worker import oracle
from tests.worker.collector import Collector
from tests.worker.in_process_kv import generate_remote
from tests.worker.oracle import MODEL

from disagg_protocol.errors import ModelError
from disagg_worker.backend import paged_attention
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.transfer.compatibility import compat_hash


def _engine(role: Any = "both", **changes: Any) -> TorchEngine:
    config = EngineConfig("m", role, dtype="float32", kv_cache_bytes=32 << 20, **changes)
    return TorchEngine(MODEL, config, PlainBackend(torch.device("cpu")))


def test_what_is_too_large_saturates_and_the_rest_is_rounded() -> None:
    cache = torch.zeros(2, 1, 2, 1, 2, 4).to(torch.float8_e4m3fn)
    k, v = torch.tensor([[[1.0, -3.3, 1e6, 0.0]]]), torch.tensor([[[-1e6, 2.0, 0.1, 448.0]]])
    paged_attention.write_kv(cache, 0, torch.tensor([3]), k, v)
    keys, values = paged_attention.gather_kv(cache, 0, torch.tensor([[1]]))
    assert keys[0, 0, 1].float().tolist() == [1.0, -3.25, 448.0, 0.0]
    assert values[0, 0, 1].float().tolist() == [-448.0, 2.0, 0.1015625, 448.0]


def test_the_cpu_kernels_refuse_it_by_name() -> None:
    backend = PlainBackend(torch.device("cpu"))
    backend.fp8_cache = False
    with pytest.raises(ModelError, match="kv_cache_dtype: fp8 is not supported by the torch backend"):
        TorchEngine(MODEL, EngineConfig("m", "both", kv_cache_dtype="fp8"), backend)


@pytest.mark.slow
def test_half_the_bytes_and_nearly_the_same_tokens_also_after_a_transfer() -> None:
    prompts = [p for p in oracle.prompts()[:12] if len(p) < 400]
    exact, prefill, decode = _engine(), *(_engine(role, kv_cache_dtype="fp8") for role in ("prefill", "decode"))
    assert prefill.layout.bytes_per_token * 4 == exact.layout.bytes_per_token  # The other is float32.
    assert compat_hash(exact.model.digest, exact.layout) != compat_hash(prefill.model.digest, prefill.layout)
    sinks, others = [Collector() for _ in prompts], [Collector() for _ in prompts]
    for i, (prompt, sink, other) in enumerate(zip(prompts, sinks, others, strict=True)):
        exact.generate(str(i), prompt, len(prompt), oracle.SAMPLING, sink)
        generate_remote(prefill, decode, str(i), prompt, len(prompt), oracle.SAMPLING, other)
    found, rounded = [s.finished() for s in sinks], [s.finished() for s in others]
    for engine in (exact, prefill, decode):
        engine.stop(10)
    same = sum(a == b for one, two in zip(found, rounded, strict=True) for a, b in zip(one, two, strict=True))
    total = len(prompts) * oracle.NEW_TOKENS
    print(f"{same} of {total} greedy tokens are the same with an fp8 cache")
    assert same > 0.6 * total
