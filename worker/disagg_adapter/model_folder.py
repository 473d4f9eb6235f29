"""The model's small files, wherever the engine or the operator has put them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg_protocol.errors import ModelError
from disagg_protocol.model_files import read_json, tokenizer_files
from disagg_protocol.token_fields import token_ids

_NAMES = ("config.json", "generation_config.json", "model.safetensors.index.json", "quantize_config.json")
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the files tell of the model."""

    digest: str
    """A hash of the URI, the configuration, the index and the tokenizer; not of the weights, which
    the adapter does not see.
    """
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    kv_bytes_per_token: int
    """The bytes of KV of a token over all layers and ranks."""
    tokenizer: dict[str, Any]
    """The answer to the call for the tokenizer."""


def find(folder: Path, uri: str) -> Path | None:
    """Return the folder that holds config.json, None while there is none.

    It is `folder` itself, or the newest snapshot of an hf:// model in a cache of the hub. With a
    revision, its own snapshot is taken.
    """
    if (folder / "config.json").is_file():
        return folder
    name, _, revision = uri.removeprefix("hf://").partition("@")
    home = folder / f"models--{name.replace('/', '--')}"
    reference = home / "refs" / (revision or "main")
    snapshot = reference.read_text().strip() if reference.is_file() else revision
    if snapshot and (home / "snapshots" / snapshot / "config.json").is_file():
        return home / "snapshots" / snapshot
    return None


def load(folder: Path, uri: str, dtype: str) -> ModelFolder:
    """Read the files of a model. Raises ModelError or OSError."""
    config, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    # Models that read images keep the numbers of their text part apart.
    text = config | config.get("text_config", {})
    if not isinstance(text.get("vocab_size"), int):
        raise ModelError("config.json: vocab_size: is missing")
    tokenizer = tokenizer_files(folder)
    bos = token_ids(text, "bos_token_id")
    digest = hashlib.sha256(json.dumps([uri, tokenizer["digest"]]).encode())
    for name in _NAMES:
        path = folder / name
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return ModelFolder(
        digest=digest.hexdigest(),
        vocab_size=text["vocab_size"],
        eos_token_ids=token_ids(generation, "eos_token_id") or token_ids(text, "eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        kv_bytes_per_token=_kv_bytes(text, dtype),
        tokenizer=tokenizer,
    )


def _kv_bytes(text: dict[str, Any], dtype: str) -> int:
    """Return the bytes of KV of a token (disagg_operator.performance has the same rule)."""
    kind = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16") if dtype == "auto" else dtype
    itemsize, layers = _ITEMSIZE.get(kind, 2), int(text.get("num_hidden_layers") or 0)
    if text.get("kv_lora_rank"):  # multi-head latent attention keeps one vector for all heads
        return layers * itemsize * (int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim") or 0))
    heads = int(text.get("num_attention_heads") or 1)
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_dim = int(text.get("head_dim") or int(text.get("hidden_size") or 0) // heads)
    return 2 * layers * kv_heads * head_dim * itemsize
