"""The cache costs a key and a value for each head of each layer."""

from __future__ import annotations

from disagg_worker.values.layouts import KvLayout


def test_a_token_costs_a_key_and_a_value_of_each_head_and_layer() -> None:
    # Llama 3.1 8B in bfloat16: 128 KiB a token.
    layout = KvLayout(layers=32, kv_heads=8, head_dim=128, block_size_tokens=16, dtype="bfloat16", itemsize_bytes=2)
    assert layout.bytes_per_token == 128 * 1024
    assert layout.layer_block_bytes * layout.layers == 16 * layout.bytes_per_token
