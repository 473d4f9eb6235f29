"""Tests of the pure parts of the engine benchmark.

They are the GGUF writer, the comparison of tokens and the arithmetic of the table.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.engine import agreement, model, report, run
from tests.worker import checkpoints


def test_a_gguf_holds_every_tensor_where_its_header_says(tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path / "tiny", head_dim=8, rope_theta=10000.0)
    data = model.write_gguf(folder, tmp_path / "tiny.gguf", torch.float32).read_bytes()
    magic, version, tensors, fields = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    config = json.loads((folder / "config.json").read_text())
    assert tensors == 2 * 9 + 2  # embeddings are tied, so there is no head
    at = 24
    for _ in range(fields):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        kind = struct.unpack_from("<I", data, at)[0]
        at += 4 + (8 + struct.unpack_from("<Q", data, at + 4)[0] if kind == 8 else 4)
    found = {}
    for _ in range(tensors):
        length = struct.unpack_from("<Q", data, at)[0]
        name = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        dims = struct.unpack_from("<I", data, at)[0]
        shape = struct.unpack_from(f"<{dims}Q", data, at + 4)
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * dims)
        at += 16 + 8 * dims
        assert kind == 0
        found[name] = (shape, offset)
    start = -(-at // 32) * 32
    original = checkpoints.random_tensors(config)
    shape, offset = found["blk.1.ffn_down.weight"]
    assert shape == (48, 32)
    read = torch.frombuffer(bytearray(data[start + offset : start + offset + 4 * 48 * 32]), dtype=torch.float32).view(
        32, 48
    )
    assert torch.equal(read, original["model.layers.1.mlp.down_proj.weight"])
    # llama.cpp rotates neighbours: row 1 of a head of 8 is rotated with row 0, and is row 4 of the
    # checkpoint.
    _, offset = found["blk.0.attn_q.weight"]
    read = torch.frombuffer(bytearray(data[start + offset : start + offset + 4 * 32 * 32]), dtype=torch.float32).view(
        32, 32
    )
    assert torch.equal(read[1], original["model.layers.0.self_attn.q_proj.weight"][4])


def test_a_difference_is_found_and_its_gap_taken() -> None:
    def network(ids: torch.Tensor) -> Any:
        assert ids.tolist() == [[9, 1]]
        return SimpleNamespace(logits=torch.tensor([[[0.0, 3.0, 2.5]]]))

    found = agreement.compare([[1, 2], [4, 5]], [[1, 3], [4, 5]], [[9], [8]], network)
    assert found == {"identical": 1, "differing": [{"prompt": 0, "position": 1, "gap": 0.5}]}


def test_the_table_states_the_share_of_each_roof() -> None:
    bytes_ = run.weight_bytes("bf16", "ours bf16")
    assert bytes_ == 2 * model.matrices(model.CONFIG)
    decode_s, prefill_s = 2 * bytes_ / 20e9, 0.5
    steps = {
        "decode 1x0": {"cpu": decode_s, "wall": decode_s},
        "prefill 1x128": {"cpu": prefill_s, "wall": 2 * prefill_s},
    }
    found = {
        "machine": "m",
        "rounds": 1,
        "versions": {},
        "roofs": {"read_gb_per_s": 20.0, "products_128_s": 0.4},
        "weight_bytes": {"ours bf16": bytes_},
        "overhead": {"ours bf16, decode 1x0": 0.02, "ours bf16, prefill 1x128": 0.01},
        "step_s": {"ours bf16": steps},
    }
    text = report.render({"bf16": found})
    assert "| 50 % | 2.0 % |" in text
    assert "| 80 % | 1.0 % |" in text
    assert "| 256 (128) |" in text
