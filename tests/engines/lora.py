"""Small LoRA adapters for the bundled model, whose answers are unlike the model's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from benchmarks.engine.vllm_process import MODEL
from safetensors.torch import save_file

RANK = 8


def write_adapter(folder: Path, seed: int, scale: float = 0.6) -> Path:
    """Write an adapter in the format of PEFT with random weights, and return its folder."""
    config = json.loads((MODEL / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    widths = {"q_proj": heads * head_dim, "v_proj": config["num_key_value_heads"] * head_dim}
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in widths.items():
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{base}.lora_A.weight"] = torch.randn(RANK, hidden, generator=rng) * scale / RANK**0.5
            tensors[f"{base}.lora_B.weight"] = torch.randn(width, RANK, generator=rng) * scale / RANK**0.5
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {
        "peft_type": "LORA", "base_model_name_or_path": "stdlib-llama", "r": RANK, "lora_alpha": RANK,
        "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM", "target_modules": sorted(widths),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder
