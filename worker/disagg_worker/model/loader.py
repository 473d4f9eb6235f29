"""The way from a model's URI to its folder, configuration and tokenizer.

No code from the model folder is run.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch

from disagg_protocol.errors import ModelError
from disagg_protocol.model_files import read_json
from disagg_worker.model.config import ModelConfig, parse_config, unknown_fields

log = logging.getLogger(__name__)
_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "chat_template.jinja",
]
_HF_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(uri: str, mount: Path, cache: Path) -> Path:
    """Return the local folder of a model URI.

    The URI is `file:///path`, `pvc://claim/path` (mounted at `mount`) or
    `hf://org/name[@revision]` (downloaded into `cache`). Raises ModelError.
    """
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
    """Download a model from the Hugging Face hub and return its folder.

    huggingface_hub itself reads HF_ENDPOINT and HF_TOKEN, and bounds and retries each request.
    """
    match = _HF_NAME.fullmatch(rest)
    if match is None:
        raise ModelError(f"model uri {uri}: must be hf://org/name or hf://org/name@revision")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(match["name"], revision=match["revision"], cache_dir=cache, allow_patterns=_FILES)
        )
    except Exception as error:
        raise ModelError(f"model uri {uri}: {error}") from error


def load_config(folder: Path) -> ModelConfig:
    raw = read_json(folder / "config.json")
    config = parse_config(raw, read_json(folder / "generation_config.json"))
    if unknown := unknown_fields(raw):
        log.warning("config.json: %s: not known here, ignored", ", ".join(unknown))
    return config


def pick_dtype(setting: str, config: ModelConfig, device: str) -> torch.dtype:
    """Return the dtype for the setting `dtype`; `auto` is the checkpoint's own.

    On a CPU, `auto` replaces float16 with bfloat16 (CPUs compute float16 a thousand times slower).
    Raises ModelError.
    """
    if setting == "auto":
        dtype = DTYPES.get(config.dtype, torch.bfloat16)
        return torch.bfloat16 if dtype == torch.float16 and device == "cpu" else dtype
    if setting not in DTYPES:
        raise ModelError(f"dtype {setting!r} is not supported (auto, {', '.join(DTYPES)})")
    if setting == "float16" and device == "cpu":
        raise ModelError("dtype 'float16' is not supported on a CPU (use bfloat16 or float32)")
    return DTYPES[setting]
