"""The model that every engine gets, and its conversion.

It is a Llama with 88 million random weights. Any Llama checkpoint can be written as GGUF for
llama.cpp.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 0,
}
_ALIGNMENT = 32
_TYPES = {torch.float32: 0, torch.bfloat16: 30}  # the numbers of ggml
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # the numbers of GGUF


def matrices(config: dict[str, Any]) -> int:
    """Return how many weights one decode step reads: all but the embedding."""
    h, inner, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    qkv = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * d
    layer = h * (qkv + config["num_attention_heads"] * d + 3 * inner)
    return int(config["num_hidden_layers"] * layer + h * config["vocab_size"])


def random_tensors(config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    h, inner, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    shapes = {
        "self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, q), "mlp.gate_proj": (inner, h), "mlp.up_proj": (inner, h),
        "mlp.down_proj": (h, inner),
    }  # fmt: skip
    yield "model.embed_tokens.weight", torch.randn(config["vocab_size"], h, generator=draw) * 0.02
    for i in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            yield f"model.layers.{i}.{name}.weight", torch.randn(shape, generator=draw) * 0.02
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{name}.weight", torch.ones(h)
    yield "model.norm.weight", torch.ones(h)
    yield "lm_head.weight", torch.randn(config["vocab_size"], h, generator=draw) * 0.02


def write_random(folder: Path, dtype: torch.dtype) -> Path:
    """Write the checkpoint as Hugging Face lays it out, unless it exists already."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # The values are rounded to bfloat16 in any case, so that all data types hold the same numbers.
    tensors = {name: t.bfloat16().to(dtype) for name, t in random_tensors(CONFIG)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": str(dtype).removeprefix("torch.")}, indent=1))
    return folder


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of q or k in the order of llama.cpp.

    It rotates neighbours where transformers rotates halves.
    """
    return weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _renamed(name: str, weight: torch.Tensor, config: dict[str, Any]) -> tuple[str, torch.Tensor]:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name], weight
    _, _, layer, *middle, _ = name.split(".")
    ours = ".".join(middle)
    if ours == "self_attn.q_proj":
        weight = _interleaved(weight, config["num_attention_heads"])
    if ours == "self_attn.k_proj":
        weight = _interleaved(weight, config["num_key_value_heads"])
    return f"blk.{layer}.{_NAMES[ours]}.weight", weight


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _fields(config: dict[str, Any], name: str) -> dict[str, str | int | float]:
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.alignment": _ALIGNMENT,
        "llama.vocab_size": config["vocab_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "tokenizer.ggml.model": "none",
    }


def _field(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<If", _FLOAT32, value) if isinstance(value, float) else struct.pack("<II", _UINT32, value)


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))


def write_gguf(folder: Path, target: Path, dtype: torch.dtype) -> Path:
    """Write a checkpoint as GGUF version 3, without a tokenizer, unless the file exists already.

    ggml's docs/gguf.md specifies the format.
    """
    if target.exists():
        return target
    config = json.loads((folder / "config.json").read_text())
    tensors = dict(_renamed(name, t, config) for name, t in load_file(folder / "model.safetensors").items())
    # Every GGUF has vectors in float32.
    tensors = {name: t.to(torch.float32 if t.dim() == 1 else dtype).contiguous() for name, t in tensors.items()}
    fields = _fields(config, folder.name)
    made = target.with_suffix(".part")
    with made.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)))
        for key, value in fields.items():
            file.write(_string(key) + _field(value))
        offset = 0
        for name, t in tensors.items():
            file.write(_string(name) + struct.pack("<I", t.dim()) + struct.pack(f"<{t.dim()}Q", *reversed(t.shape)))
            file.write(struct.pack("<IQ", _TYPES[t.dtype], offset))
            offset += -(-t.nbytes // _ALIGNMENT) * _ALIGNMENT
        _pad(file)
        for t in tensors.values():
            file.write(t.view(torch.uint8).numpy().tobytes() if t.dtype == torch.bfloat16 else t.numpy().tobytes())
            _pad(file)
    made.replace(target)
    return target
