"""The model's small files, wherever the engine or the operator has put them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg_protocol.errors import ModelError
from disagg_protocol.model_files import read_json, source_revision, tokenizer_files
from disagg_protocol.token_fields import token_ids

_NAMES = ("config.json", "generation_config.json", "model.safetensors.index.json", "quantize_config.json")
_WEIGHTS = ("*.safetensors", "*.bin")
# The parts of each file of weights that are hashed: adapters have neither the time nor the memory
# to read all of it.
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The facts about the model that its files tell."""

    digest: str
    """A hash of the URI, the source revision, the configuration, the index, the tokenizer, and the
    size and samples of the weights where the adapter sees them.
    """
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    kv_bytes_per_token: int
    """The bytes of KV of a token over all layers and ranks."""
    tokenizer: dict[str, Any]
    """The answer to the call for the tokenizer."""
    revision: str = ""
    """The commit of a model from the hub; empty for others."""


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
    revision = source_revision(folder)
    digest = hashlib.sha256(json.dumps([uri, revision, tokenizer["digest"]]).encode())
    for name in _NAMES:
        path = folder / name
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    for path in sorted(p for pattern in _WEIGHTS for p in folder.glob(pattern)):
        digest.update(_sampled(path))
    return ModelFolder(
        digest=digest.hexdigest(),
        revision=revision,
        vocab_size=text["vocab_size"],
        eos_token_ids=token_ids(generation, "eos_token_id") or token_ids(text, "eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        kv_bytes_per_token=_kv_bytes(text, dtype),
        tokenizer=tokenizer,
    )


def _sampled(path: Path) -> bytes:
    """Return a hash of a file's name, its size, and parts from its beginning to its end.

    Training changes nearly every number, so weights that differ anywhere differ here.
    """
    size = path.stat().st_size
    found = hashlib.sha256(json.dumps([path.name, size]).encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            found.update(file.read(_SAMPLE_BYTES))
    return found.digest()


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
