"""Tests of attention over scattered blocks, which must equal attention over the same keys in a row,
written out by hand.
"""

from __future__ import annotations

import pytest
import torch

from disagg_worker.backend import paged_attention

HEAD_DIM, SIZE, LAYERS, BLOCKS = 8, 4, 2, 11


def _by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute causal softmax attention, one head and one query at a time.

    The tokens q [tokens, head, dim] are the last ones of k and v [keys, kv_head, dim].
    """
    group, earlier = q.shape[1] // k.shape[1], k.shape[0] - q.shape[0]
    out = torch.empty_like(q)
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys, values = k[: earlier + t + 1, h // group], v[: earlier + t + 1, h // group]
            out[t, h] = torch.softmax(keys @ q[t, h] / HEAD_DIM**0.5, 0) @ values
    return out.flatten(1)


def _slots(table: list[int], tokens: int) -> torch.Tensor:
    at = torch.arange(tokens)
    return torch.tensor(table)[at // SIZE] * SIZE + at % SIZE


def _filled(kv_heads: int, table: list[int], k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
    """Return a cache full of garbage, but for k and v [keys, kv_head, dim] in the blocks of
    `table`.
    """
    cache = torch.full((BLOCKS, LAYERS, 2, kv_heads, SIZE, HEAD_DIM), 1e3)
    paged_attention.write_kv(cache, layer, _slots(table, len(k)), k, v)
    return cache


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)], ids=["a KV head each", "two share one", "all share one"]
)
@pytest.mark.parametrize(("keys", "tokens"), [(1, 1), (7, 7), (8, 8), (9, 3), (16, 1)])
def test_a_chunk_attends_to_its_prefix_and_to_itself(heads: int, kv_heads: int, keys: int, tokens: int) -> None:
    torch.manual_seed(keys)
    q, k, v = (
        torch.randn(tokens, heads, HEAD_DIM),
        torch.randn(keys, kv_heads, HEAD_DIM),
        torch.randn(keys, kv_heads, HEAD_DIM),
    )
    table = [9, 2, 7, 4][: -(-keys // SIZE)]
    cache = _filled(kv_heads, table, k, v, layer=1)
    found_k, found_v = paged_attention.gather_kv(cache, 1, torch.tensor([table]))
    torch.testing.assert_close(found_k[0, :, :keys], k.transpose(0, 1))
    out = paged_attention.prefill(q, found_k[0, :, :keys], found_v[0, :, :keys])
    torch.testing.assert_close(out, _by_hand(q, k, v))


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)], ids=["a KV head each", "two share one", "all share one"]
)
def test_a_decode_batch_of_unequal_lengths_is_as_each_sequence_alone(heads: int, kv_heads: int) -> None:
    torch.manual_seed(1)
    lengths, tables = [1, 6, 12], [[3], [8, 1], [0, 10, 5]]
    cache = torch.full((BLOCKS, LAYERS, 2, kv_heads, SIZE, HEAD_DIM), 1e3)
    parts = [(torch.randn(n, kv_heads, HEAD_DIM), torch.randn(n, kv_heads, HEAD_DIM)) for n in lengths]
    for table, (k, v) in zip(tables, parts, strict=True):
        paged_attention.write_kv(cache, 0, _slots(table, len(k)), k, v)
    q = torch.randn(3, heads, HEAD_DIM)
    padded = torch.tensor([t + t[:1] * (3 - len(t)) for t in tables])
    mask = paged_attention.decode_mask(torch.tensor(lengths), 3 * SIZE, None)
    out = paged_attention.decode(q, *paged_attention.gather_kv(cache, 0, padded), mask)
    for i, (k, v) in enumerate(parts):
        torch.testing.assert_close(out[i : i + 1], _by_hand(q[i : i + 1], k, v))


def test_a_layers_keys_do_not_touch_another_layer() -> None:
    k = torch.randn(5, 2, HEAD_DIM)
    cache = _filled(2, [1, 2], k, k, layer=0)
    assert bool((cache[:, 1] == 1e3).all())
