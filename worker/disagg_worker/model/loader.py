"""From a model's URI to a folder, and from a folder to checked tensors. Runs no code from the model folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from disagg_worker.engine.api import ModelError
from disagg_worker.model.config import ModelConfig, parse_config

_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "chat_template.jinja",
]
_HF_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STORED = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


def resolve(uri: str, mount: Path, cache: Path) -> Path:
    """The local folder of `file:///path`, `pvc://claim/path` (mounted at `mount`) or `hf://org/name[@revision]` (downloaded)."""
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        folder = Path(rest)
        if not folder.is_absolute():
            raise ModelError(f"model uri {uri}: the path must be absolute (file:///path)")
    elif scheme == "pvc":
        folder = mount / rest.partition("/")[2]
        if ".." in folder.parts:
            raise ModelError(f"model uri {uri}: the path leaves the claim")
    elif scheme == "hf":
        folder = _download(uri, rest, cache)
    else:
        raise ModelError(f"model uri {uri!r}: the scheme must be hf, pvc or file")
    if not (folder / "config.json").is_file():
        raise ModelError(f"model uri {uri}: {folder} holds no config.json")
    return folder


def _download(uri: str, rest: str, cache: Path) -> Path:
    """HF_ENDPOINT and HF_TOKEN are read by huggingface_hub itself, which also bounds and retries each request."""
    match = _HF_NAME.fullmatch(rest)
    if match is None:
        raise ModelError(f"model uri {uri}: must be hf://org/name or hf://org/name@revision")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(match["name"], revision=match["revision"], cache_dir=cache, allow_patterns=_FILES))
    except Exception as error:
        raise ModelError(f"model uri {uri}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """{} when there is no such file. Raises ModelError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path.name}: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.name}: must be an object")
    return content


def load_config(folder: Path) -> ModelConfig:
    return parse_config(read_json(folder / "config.json"), read_json(folder / "generation_config.json"))


def tokenizer_files(folder: Path) -> dict[str, Any]:
    """What the router needs to turn text into tokens and back; see docs/protocol.md."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no tokenizer.json")
    tokenizer, config = path.read_text(encoding="utf-8"), read_json(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    digest = hashlib.sha256(json.dumps([tokenizer, config, chat], sort_keys=True).encode()).hexdigest()
    return {"digest": digest, "tokenizer_json": tokenizer, "tokenizer_config": config, "chat_template": chat}


def _shards(folder: Path) -> list[Path]:
    index = read_json(folder / "model.safetensors.index.json")
    names = ["model.safetensors"]
    if index:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
            raise ModelError("model.safetensors.index.json: weight_map: must map tensor names to files")
        names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{folder.name}: {name} is missing")
    return [folder / name for name in names]


def expected_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the architecture and its shape."""
    yield "model.embed_tokens.weight", (c.vocab_size, c.hidden_size)
    yield "model.norm.weight", (c.hidden_size,)
    if not c.tied_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.hidden_size)
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for i in range(c.layers):
        at = f"model.layers.{i}"
        yield f"{at}.input_layernorm.weight", (c.hidden_size,)
        yield f"{at}.post_attention_layernorm.weight", (c.hidden_size,)
        yield f"{at}.self_attn.q_proj.weight", (q, c.hidden_size)
        yield f"{at}.self_attn.k_proj.weight", (kv, c.hidden_size)
        yield f"{at}.self_attn.v_proj.weight", (kv, c.hidden_size)
        yield f"{at}.self_attn.o_proj.weight", (c.hidden_size, q)
        yield f"{at}.mlp.gate_proj.weight", (c.intermediate_size, c.hidden_size)
        yield f"{at}.mlp.up_proj.weight", (c.intermediate_size, c.hidden_size)
        yield f"{at}.mlp.down_proj.weight", (c.hidden_size, c.intermediate_size)


@dataclass(frozen=True, slots=True)
class Weights:
    """Checked tensors by name, and the digest of config and files (hex SHA-256)."""

    tensors: dict[str, torch.Tensor]
    digest: str


def _digest(folder: Path, shards: list[Path]) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for shard in shards:
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _checked(tensor: torch.Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype not in _STORED:
        raise ModelError(f"{name} is stored as {tensor.dtype}, which is not supported")
    if tuple(tensor.shape) != shape:
        raise ModelError(f"{name} has shape {tuple(tensor.shape)}, config.json says {shape}")
    if not torch.isfinite(tensor).all():
        raise ModelError(f"{name} holds NaN or infinite values")
    return tensor.to(dtype)


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> Weights:
    """Read every tensor, checked against the config. Raises ModelError naming the file or tensor."""
    shards = _shards(folder)
    shapes = dict(expected_shapes(config))
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name not in shapes and (name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")):
                        continue  # a tied head or a computed buffer that some checkpoints store nevertheless
                    if name not in shapes:
                        raise ModelError(f"tensor {name} is not part of {config.architecture}")
                    if name in tensors:
                        raise ModelError(f"tensor {name} is in two files")
                    tensors[name] = _checked(file.get_tensor(name), name, shapes[name], dtype)
        except (SafetensorError, OSError, ModelError) as error:
            raise ModelError(f"{shard.name}: {error}") from None
    if missing := sorted(set(shapes) - set(tensors)):
        raise ModelError(f"{folder.name}: tensor {missing[0]} is missing ({len(missing)} in all)")
    return Weights(tensors, _digest(folder, shards))


def pick_dtype(setting: str, config: ModelConfig) -> torch.dtype:
    """`auto` is the checkpoint's own; float16 becomes bfloat16 (CPUs compute float16 a thousand times slower)."""
    if setting == "auto":
        return DTYPES.get(config.dtype, torch.bfloat16)
    if setting not in DTYPES:
        raise ModelError(f"dtype {setting!r} is not supported (auto, {', '.join(DTYPES)})")
    return DTYPES[setting]
